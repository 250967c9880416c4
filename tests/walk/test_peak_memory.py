"""The walk's peak memory does not grow with the depth of the model, nor with the text once that is more than the memory may hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.walk.conftest import save_tiny_llama

_CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from passes import chain
from passes.blocks.dense_model import DenseModel
from passes.files.checkpoint import Checkpoint
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.ir.sources import open_model
from passes.steps.meter import Meter
from passes.algorithms.method import GPTQ_DEFAULT, Gptq
from passes.quantize.quantize import Quantize
from passes.walk.walk import Walk
from tests.walk.conftest import context

model, folder, samples, live = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) or None
ids = torch.randint(0, 256, (samples, 128), generator=torch.Generator().manual_seed(3))
ir = open_model(model).ir
target = chain.rewrite(ir, (Quantize("gptq", PackQuantized(4, 64)),))
def walk(tokens, into):
    batch_tokens = 4096 if live is None else 1024
    Walk(DenseModel(ir, Checkpoint(model)), target, Gptq(GPTQ_DEFAULT), context(into, tokens), batch_tokens, live).run()
walk(ids[:1], folder / "first")  # what libraries take when they are first used
meter = Meter()
walk(ids, folder / "second")
print(meter.peak_bytes)
"""


def peak(folder: Path, blocks: int, samples: int = 32, live: int = 0) -> int:
    """Peak resident bytes of a walk over a model of so many blocks (1 MiB of weights a block). `live`: 0 for what the memory holds."""
    save_tiny_llama(folder / f"model-{blocks}", blocks=blocks, hidden=192)
    places = [str(folder / f"model-{blocks}"), str(folder / f"work-{blocks}-{samples}")]
    command = [sys.executable, "-c", _CHILD, *places, str(samples), str(live)]
    # One arena, given back early: what is measured is what the walk holds, not how malloc of several threads fragments.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()[-1])


@pytest.mark.slow
def test_twice_the_blocks_take_no_more_memory(tmp_path: Path) -> None:
    assert peak(tmp_path, 24) < 1.05 * peak(tmp_path, 12)


@pytest.mark.slow
def test_four_times_the_text_takes_no_more_memory_where_batches_do_not_wait(tmp_path: Path) -> None:
    assert peak(tmp_path, 4, samples=256, live=2) < 1.05 * peak(tmp_path, 4, samples=64, live=2)
