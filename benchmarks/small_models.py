"""What formats, zeros and dropped blocks really cost the two small models that are at hand, as rows of `data/quality_own.jsonl`.

    python -m benchmarks.small_models smollm2|gemma3 CHAIN...       CHAIN: parts joined by `+`: w4a16-g64, 2:4, 50%, blocks-2, …

Each chain is walked on text that the model wrote itself and judged on Python's language reference; both models come from GGUF files, so their
weights were quantized before. Prints one row of JSON a chain, with its metric, for the table.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import real_models
from passes import chain
from passes.base import Pass
from passes.blocks.devices import AUTO, compute_devices, compute_dtype
from passes.ir.sources import open_model
from passes.measure.evaluate import Measured
from passes.measure.trial import trial
from passes.prune.depth import DepthPrune
from passes.prune.sparse import Sparsify
from passes.quantize.format_names import pass_named
from passes.run.execute import resolved, source_model
from passes.steps.context import RunContext
from passes.steps.step import Steps
from passes.text.source import PYTHON_REFERENCE, TextSource, token_blocks

MODELS = {"smollm2": ("SmolLM2-135M-Instruct", real_models.smollm2), "gemma3": ("gemma-3-270m", real_models.gemma3)}


def part_named(name: str) -> Pass:
    """Return the pass that a part of a chain stands for. Raises ValueError for one that changes nothing."""
    if match := re.fullmatch(r"blocks-(\d+)", name):
        return DepthPrune(int(match[1]))
    if match := re.fullmatch(r"(\d+)%", name):
        return Sparsify(sparsity=int(match[1]) / 100)
    if ":" in name:
        return Sparsify(pattern=name)
    if (found := pass_named(name)) is None:
        raise ValueError(f"{name} changes nothing")
    return found


def measured(model: str, chains: Sequence[str], samples: int, length: int) -> None:
    """Print a row for each chain: KL against the model as it is, and the rise of log-perplexity."""
    name, fetched = MODELS[model]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = open_model(fetched())
        files = source.materialize(folder)
        devices = compute_devices(AUTO)
        dtype = compute_dtype(source.ir.dtype, device=devices[0])
        text = token_blocks(TextSource("self", samples, length), files)
        judging = token_blocks(TextSource(PYTHON_REFERENCE, samples // 2, length), files)
        dense_source = source_model(source.ir, files, dtype, devices)
        for asked in chains:
            work = folder / "run"
            work.mkdir()
            run = RunContext(work, devices, dtype, text, Steps(work))
            passes, dense = resolved([part_named(part) for part in asked.split("+")], dense_source, run)
            inside = run.part(work / "trial", lambda done, total, detail="": None)
            found = trial(passes, chain.rewrite(source.ir, passes), dense, inside, judging, reference=dense_source)
            print(json.dumps(_row(name, asked, samples, length, found)), flush=True)
            shutil.rmtree(work)


def _row(model: str, asked: str, samples: int, length: int, found: Measured) -> dict[str, object]:
    return {
        "source_url": f"benchmarks/small_models.py: ours, {samples} x {length} tokens of its own text", "model": model, "method": asked,
        "metric": "KL divergence vs source", "dataset": "python-reference", "value": round(found.kl, 5), "baseline_value": 0,
        "log_ppl_increase": round(found.log_ppl_increase, 5), "source_perplexity": round(found.source_perplexity, 2),
    }  # fmt: skip


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("chains", nargs="+")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    measured(options.model, options.chains, options.samples, options.length)


if __name__ == "__main__":
    main()
