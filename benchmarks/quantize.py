"""GPTQ W4 g64 beside llm-compressor: KL against the source on news text, and seconds.

    python -m benchmarks.quantize MODEL_FOLDER [--seeds 0 1 2] [--peer PYTHON] [--sources grid twin]

Both get the same 64 x 512 calibration tokens (another draw for each seed), both write compressed-tensors W4 g64 symmetric
with static activation order, and both results are measured by the same code on the same 32 x 512 held-out tokens. Sources:
the model itself, whose weights lie on a 4-bit grid (`grid`), and its de-gridded twin (`twin`, benchmarks/degrid.py). Nothing
is tuned on `grid`. `--peer`: the Python of an environment with llmcompressor 0.14 (it pins another compressed-tensors).
Results are kept in the cache folder; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as passes.run.execute does; read when torch is loaded

import torch

from benchmarks.degrid import degrid
from benchmarks.peer import llmcompressor
from benchmarks.text import CACHE, calibration_tokens, evaluation_tokens
from passes import chain
from passes.algorithms.gptq import GptqOptions
from passes.algorithms.method import GPTQ_DEFAULT, Gptq
from passes.algorithms.scale_search import ScaleSearch
from passes.blocks.decoded_weights import decoded_model
from passes.blocks.dense_model import DenseModel
from passes.files.checkpoint import Checkpoint, write_shard
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.measure.evaluate import evaluate
from passes.quantize.quantize import Quantize
from passes.steps.context import RunContext
from passes.steps.meter import Meter
from passes.steps.step import Steps
from passes.walk.walk import Walk

_DTYPE = torch.bfloat16
_CPU = torch.device("cpu")
_CHAIN = (Quantize("gptq", PackQuantized(4, 64)),)

#: Variants of our own quantizer that were tried on the twin; `default` is what ships.
VARIANTS = {
    "default": GPTQ_DEFAULT,
    "plain": GptqOptions("static", 0.01, ScaleSearch()),
    "group": GptqOptions("group", 0.01, ScaleSearch()),
    "group-search": GptqOptions("group", 0.01, ScaleSearch(20, 0.7)),
    "damped": GptqOptions("static", 0.05, ScaleSearch(20, 0.7)),
}


def ours(source: Path, seed: int, variant: str, label: str) -> dict[str, Any]:
    """One walk of ours; seconds and peak of the walk alone, as for the peer."""
    folder = CACHE / f"ours-{label}-{seed}-{variant}"
    record = folder.with_suffix(".json")
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        ir = open_model(source).ir
        tokens = calibration_tokens(source, seed)
        meter = Meter()
        run = RunContext(folder, (_CPU,), _DTYPE, tokens, Steps(folder))
        Walk(DenseModel(ir, Checkpoint(source)), chain.rewrite(ir, _CHAIN), Gptq(VARIANTS[variant]), run).run()
        cost = {"seconds": meter.seconds, "peak_bytes": meter.peak_bytes}
        outer = [t.name for linear in ir.outer for t in linear.tensors()] + [t.name for t in ir.outer_tensors]
        write_shard(folder / "shards" / "model-00000.safetensors", Checkpoint(source).read(outer))
        record.write_text(json.dumps(cost | {"kl": _kl(ir, source, folder / "shards")}))
    return dict(json.loads(record.read_text()))


def peer(source: Path, seed: int, label: str, python: Path) -> dict[str, Any]:
    """One run of llm-compressor, in its own environment."""
    folder = CACHE / f"llmc-{label}-{seed}"
    record = folder.with_suffix(".kl.json")
    if not record.exists():
        cost_file = folder.with_suffix(".json")
        if not (cost_file.exists() and (folder / "model.safetensors").exists()):
            cost = llmcompressor(python, source, calibration_tokens(source, seed), folder, group_size=64)
            cost_file.write_text(json.dumps(cost))
        cost = json.loads(cost_file.read_text())
        record.write_text(json.dumps(cost | {"kl": _kl(open_model(source).ir, source, folder)}))
    return dict(json.loads(record.read_text()))


def _kl(ir: ModelIR, source: Path, result: Path) -> float:
    decoded = decoded_model(ir, chain.rewrite(ir, _CHAIN), result, _DTYPE)
    with tempfile.TemporaryDirectory() as folder:
        run = RunContext(Path(folder), (_CPU,), _DTYPE, evaluation_tokens(source), Steps(Path(folder)))
        return evaluate(DenseModel(ir, Checkpoint(source)), decoded, run).kl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sources", nargs="+", default=["twin", "grid"], choices=["twin", "grid"])
    parser.add_argument("--variants", nargs="+", default=["default"], choices=sorted(VARIANTS))
    parser.add_argument("--peer", type=Path)
    options = parser.parse_args()
    print(
        f"{'source':6} {'seed':>4} {'quantizer':16} {'KL':>8} {'seconds':>8} {'peak MiB':>9} {'KL ratio':>9} {'time ratio':>10}"
    )
    for label in options.sources:
        source = degrid(options.model, CACHE / "smollm2-degridded") if label == "twin" else options.model
        for seed in options.seeds:
            base = peer(source, seed, label, options.peer) if options.peer else None
            if base:
                _line(label, seed, "llm-compressor", base, None)
            for variant in options.variants:
                _line(label, seed, f"ours {variant}", ours(source, seed, variant, label), base)


def _line(label: str, seed: int, name: str, row: dict[str, Any], base: dict[str, Any] | None) -> None:
    ratios = f"{row['kl'] / base['kl']:9.3f} {row['seconds'] / base['seconds']:10.2f}" if base else ""
    print(
        f"{label:6} {seed:4} {name:16} {row['kl']:8.4f} {row['seconds']:8.1f} {row['peak_bytes'] >> 20:9} {ratios}",
        flush=True,
    )


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"whole run {time.monotonic() - started:.0f} s")
