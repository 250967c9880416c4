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

folder, live = Path(sys.argv[1]), int(sys.argv[2]) or None

def walk(model, tokens, into):
    ir = open_model(model).ir
    target = chain.rewrite(ir, (Quantize("gptq", PackQuantized(4, 64)),))
    batch_tokens = 4096 if live is None else 1024
    Walk(DenseModel(ir, Checkpoint(model)), target, Gptq(GPTQ_DEFAULT), context(into, tokens), batch_tokens, live).run()

for number, asked in enumerate(sys.argv[3:]):
    blocks, samples = asked.split(" x ")
    ids = torch.randint(0, 256, (int(samples), 128), generator=torch.Generator().manual_seed(3))
    model = folder / f"model-{blocks}"
    if number == 0:
        walk(model, ids[:1], folder / "first")  # what libraries take when they are first used
    meter = Meter()
    walk(model, ids, folder / str(number))
    print(meter.peak_bytes)
"""


def peaks(folder: Path, *asked: tuple[int, int], live: int = 0) -> list[int]:
    """Peak resident bytes of walks over models of so many blocks (1 MiB of weights a block) with so many samples, one after another.

    `live`: 0 for what the memory holds.
    """
    for blocks in {blocks for blocks, _ in asked}:
        save_tiny_llama(folder / f"model-{blocks}", blocks=blocks, hidden=192)
    walks = [f"{blocks} x {samples}" for blocks, samples in asked]
    command = [sys.executable, "-c", _CHILD, str(folder), str(live), *walks]
    # One arena, given back early: what is measured is what the walk holds, not how malloc of several threads fragments.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "131072"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return [int(line) for line in printed.splitlines()[-len(asked) :]]


@pytest.mark.slow
def test_twice_the_blocks_take_no_more_memory(tmp_path: Path) -> None:
    shallow, deep = peaks(tmp_path, (12, 32), (24, 32))
    assert deep < 1.05 * shallow


@pytest.mark.slow
def test_four_times_the_text_takes_no_more_memory_where_batches_do_not_wait(tmp_path: Path) -> None:
    short, long = peaks(tmp_path, (4, 64), (4, 256), live=2)
    assert long < 1.05 * short


_STREAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from passes.blocks.dense_model import DenseModel
from passes.blocks.stream import BlockStream
from passes.files.checkpoint import Checkpoint
from passes.ir.sources import open_model
from tests.walk.conftest import context

def resident():
    return next(int(line.split()[1]) >> 10 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))

model, work = map(Path, sys.argv[1:])
stream = BlockStream(DenseModel(open_model(model).ir, Checkpoint(model)), context(work, torch.arange(128).view(2, 64)))
for block in stream.blocks(0):
    print(resident())
    with block.loaded() as replicas:
        block.run(replicas)
"""


def test_freed_blocks_are_given_back_by_malloc_as_it_is(tmp_path: Path) -> None:
    """Without that these blocks left 12 MiB behind them, ten of SmolLM2 100, which the next ones could not use."""
    save_tiny_llama(tmp_path / "model", blocks=10, hidden=576)
    command = [sys.executable, "-c", _STREAM, str(tmp_path / "model"), str(tmp_path / "work")]
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=usual).stdout
    _, second, *others = map(int, printed.split())
    assert max(others) - second < 4, printed
