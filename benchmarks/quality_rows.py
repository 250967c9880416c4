"""Rows of `data/quality_refs.jsonl`, `prune_refs.jsonl` and `quality_own.jsonl` as the quality fit sees them: what was done, to which
model, how large a loss.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy_rows import lost_accuracies
from benchmarks.pruned_rows import BLUR, pruned_models
from passes.formats.format import Rounding
from passes.ir.distortions import CacheRounding, Removed, Zeros
from planner.quality.features import Cause, Traits
from planner.quality.traits import named_traits

DATA = Path(__file__).parent / "data"

#: 10^9 weights where the name does not say them, or rounds them.
_SIZES = {
    "phi-3.5-mini-instruct": 3.8, "phi-4-mini-instruct": 3.8, "mistral-large-instruct-2407": 123, "mixtral 8x7b": 46.7,
    "llama-4-scout-17b-16e-instruct": 109, "llama-4-maverick-17b-128e-instruct": 402, "olmoe-1b-7b-0924": 6.9, "granite-3.0-1b-a400m-base": 1.33,
}  # fmt: skip
_EXACT = {
    ("llama-1", 7): 6.74, ("llama-1", 13): 13.0, ("llama-1", 30): 32.5, ("llama-1", 65): 65.3, ("llama-2", 7): 6.74,
    ("llama-2", 70): 69.0, ("llama-3", 1): 1.24, ("llama-3", 3): 3.21, ("llama-3", 8): 8.03, ("llama-3", 8.1): 8.03,
    ("llama-3", 70): 70.6, ("mistral", 7): 7.25,
}  # fmt: skip

#: Tables whose KL divergences stand for a perplexity: they print no perplexity of the same rows.
_KL_SOURCES = ("https://github.com/turboderp-org/exllamav3", "benchmarks/")

#: How the metric of a row begins that is an average over a suite of tasks: what one is worth in nats is the suite's own.
SUITE = "suite:"
#: Less is within the noise of perplexities as they are printed: such a row says that the loss is small, no more. A row below `_MISPRINT` says
#: that a perplexity fell by more than noise, and is left out.
LEAST_RISE, _MISPRINT = 0.001, -0.01

#: Tokens a word of WikiText-2's test text, by family: lm-eval's `word_perplexity` is of words (5.35 bytes each, by the `byte_perplexity` beside it
#: in pytorch/ao#3394, so 241,000 of them), and llama.cpp makes 655 chunks of 512 tokens of it with Llama 2's tokenizer, 564 with Llama 3's.
_TOKENS_A_WORD, _OTHER_TOKENS_A_WORD = {"llama-1": 1.39, "llama-2": 1.39}, 1.2

_SCHEMES: tuple[tuple[str, Callable[[re.Match[str], dict[str, Any]], Rounding]], ...] = (
    (r"(EXL2|EXL3) .*", lambda m, r: Rounding(m[1].lower(), r["bits"])),
    (r"GGUF iq.*", lambda m, r: Rounding("gguf-iq", r.get("effective_bpw", 16))),
    (r"GGUF q\d_k.*", lambda m, r: Rounding("gguf-k", r.get("effective_bpw", 16))),
    (r"GGUF q\d_[01].*", lambda m, r: Rounding("gguf-0", r.get("effective_bpw", 16))),
    (r"(GPTQ|RTN|AWQ|OmniQuant|EfficientQAT)", lambda m, r: Rounding(m[1].lower(), r["bits"], int(r.get("group_size") or 0))),
    (r"(AWQ|OmniQuant) \(as reported there\)", lambda m, r: Rounding(m[1].lower(), r["bits"], -1)),
    (r"(GPTQ)-R W4A16 g128|(GPTQ) \(modified.*|(AWQ) W4A16 g128|(AWQ) 4bit|(AWQ) INT4", lambda m, r: Rounding(m[m.lastindex or 0].lower(), 4, 128)),
    (r"INT4 (AWQ|RTN) \(ONNX\)", lambda m, r: Rounding(f"{m[1].lower()}-onnx", 4, 128)),
    (r"INT8 (AWQ|RTN) \(ONNX\)", lambda m, r: Rounding(f"{m[1].lower()}-onnx", 8, 128)),
    (r"torchao INT8 weight-only", lambda m, r: Rounding("rtn", 8, -1)),
    (r"torchao INT4 weight-only g64", lambda m, r: Rounding("rtn", 4, 64)),
    (r"torchao GPTQ INT4 g64.*", lambda m, r: Rounding("gptq", 4, 64)),
    (r"torchao HQQ uint4 g64.*", lambda m, r: Rounding("hqq", 4, 64)),
    (r"AQLM\+PV .*|AQLM .*-pv", lambda m, r: Rounding("aqlm-pv", r.get("effective_bpw") or r["bits"])),
    (r"AQLM.*", lambda m, r: Rounding("aqlm", r.get("effective_bpw") or r["bits"])),
    (r"VPTQ.*", lambda m, r: Rounding("vptq", r.get("effective_bpw") or r["bits"])),
    (r"(QuIP#?)( \(no FT)?(, no E8)?\)?", lambda m, r: Rounding(m[1].lower() + ("-noft" if m[2] else "") + ("-noe8" if m[3] else ""), r["bits"])),
    (r"(QuaRot|SpinQuant|LLM-QAT) W4A16KV16", lambda m, r: Rounding(m[1].lower(), 4, -1)),
    (r"SmoothQuant W8A8.*|(?:torchao )?INT8 dynamic W8A8", lambda m, r: Rounding("w8a8", 0)),
    (r"torchao FP8 weight-only", lambda m, r: Rounding("fp8-wo", 0)),
    (r"(torchao |PTPC-)?FP8( dynamic| rowwise| per-tensor| \().*|torchao FP8 rowwise|FP8 per-tensor", lambda m, r: Rounding("fp8", 0)),
    (r"torchao MXFP8.*", lambda m, r: Rounding("mxfp8", 0)),
    (r"torchao NVFP4", lambda m, r: Rounding("nvfp4", 0)),
)  # fmt: skip


#: KV types of the tables by the names of engines' types that they stand for, or by their own. ExLlamaV2's FP8 cache is the upper byte of
#: FP16 (`exllamav2_ext/cuda/cache.cu`, 0.3.2): e5m2 cut off, not rounded, which makes all keys and values smaller; no engine's e5m2.
_KV = {
    "fp8": "fp8_cut", "q4 (Hadamard)": "q4", "q4 (old, before Hadamard)": "q4_plain", "int4 (4.0 avg bits printed)": "int4_token",
    "KIVI* int4": "int4_grouped", "FlexGen-4bit (4.31 avg bits printed)": "int4_grouped", "KIVI* int2": "int2_grouped",
}  # fmt: skip
_PATTERNS = {"50% unstructured": "unstructured", "4:8": "4:8", "2:4": "2:4"}


@dataclass(frozen=True)
class Row:
    """One measured loss: `rise` is ln(perplexity / baseline), or a KL divergence where `metric` is `kl`."""

    source: str
    model: str
    metric: str
    cause: Cause
    traits: Traits
    rise: float
    baseline: float
    judged: bool
    """Whether it is of the kind that the accuracy goals are about: GPTQ, AWQ, RTN and EXL2 on WikiText-2."""
    blur: float = 0.0
    """Standard deviation in ln of the rise, beside what all rows have: of a rise that was read from something else."""

    @property
    def group(self) -> tuple[str, str]:
        """One table's figures of one model: held out together."""
        return self.source, self.model


def raw_rows() -> list[dict[str, Any]]:
    """The published tables, and what was measured here, as they are stored."""
    return [
        json.loads(line)
        for name in ("quality_refs", "prune_refs", "quality_own")
        for line in (DATA / f"{name}.jsonl").read_text().splitlines()
    ]


def traits_by_name(name: str) -> Traits:
    """Traits of a model of the table, its size read from its name."""
    found = re.search(r"([\d.]+) ?([bBmM])(?![a-z])", name)
    size = _SIZES.get(name.lower()) or (float(found[1]) * (1e-3 if found[2] in "mM" else 1) if found else 7.0)
    traits = named_traits(name, size)
    return replace(traits, size_b=_EXACT.get((traits.family, size), size))


def cause_of(row: dict[str, Any]) -> Cause | None:
    """What a row says was done to the model; None where that is nothing known, or the figure is not trusted."""
    method, model = row["method"], row["model"]
    if row.get("rounding"):
        return Rounding(**row["rounding"])
    if row.get("removed"):
        return Removed(row["removed"], row["sparsity"])
    if row.get("sparsity"):
        pattern = _PATTERNS.get(row["sparsity"])
        return Zeros(method.lower(), 0.5, pattern) if pattern and method in ("SparseGPT", "Wanda") else None
    if row.get("kv_dtype") not in (None, "fp16"):
        dtype = _KV.get(row["kv_dtype"])
        other = dtype == "fp8_cut" and "exllamav2" not in row["source_url"]
        return CacheRounding(dtype) if dtype and not other else None
    # Retraining on web text pulls an instruct model's perplexity on such text down: not a loss of quantization alone.
    if method == "EfficientQAT" and "Instruct" in model:
        return None
    # The printed 70B figures of this table are around 1e5; its LLaMA-2 q2_K figure contradicts its own ratio.
    if ("SpinQuant" in row["source_url"] and "Llama-3-70B" in model) or (
        "ik_llama" in row["source_url"] and "2-7B" in model
    ):
        return None
    # AWQ in groups of 128 loses more there than with one scale a row, in 21 of 22 pairs, where every other table and GPTQ beside it say
    # the opposite; and how SmoothQuant's inputs were rounded (a scale a tensor, as in its demonstration, or a token) is not told.
    if "2505.02214" in row["source_url"] and (
        (method == "AWQ" and row["group_size"] == 128) or method.startswith("SmoothQuant")
    ):
        return None
    for pattern, build in _SCHEMES:
        match = re.fullmatch(pattern, method, re.IGNORECASE)
        if match:
            scheme = build(match, row)
            return scheme if scheme.bits <= 9 else None
    return None


def loss_rows() -> Iterator[Row]:
    """Every row: losses by perplexity and KL divergence; pruned models, and models in about 4 bits, by their accuracies."""
    yield from _measured_rows()
    for lost in lost_accuracies(raw_rows()):
        traits = traits_by_name(lost.model)
        yield Row(
            lost.source, lost.model, f"{SUITE}{lost.suite}", lost.rounding, traits, lost.rise, 8.0, False, lost.blur
        )
    for pruned in pruned_models():
        traits = named_traits(pruned.model, pruned.size_b)
        rise = max(pruned.rise, LEAST_RISE)
        yield Row(pruned.source, pruned.model, "accuracy", pruned.removed, traits, rise, 8.0, False, BLUR)


def _measured_rows() -> Iterator[Row]:
    """Losses by perplexity (of weight formats on WikiText-2, any protocol), by KL divergence in exllamav3's plot and our own benchmarks."""
    for row in raw_rows():
        kl = row["source_url"].startswith(_KL_SOURCES) and row["metric"].startswith("KL")
        if not kl and row["metric"] not in ("perplexity", "word perplexity"):
            continue
        cause = cause_of(row)
        if cause is None or row["value"] <= 0 or not (kl or row.get("baseline_value")):
            continue
        if not kl and isinstance(cause, Rounding) and not row["dataset"].startswith("wikitext"):
            continue
        traits = traits_by_name(row["model"])
        rise = row["value"] if kl else math.log(row["value"] / row["baseline_value"])
        if row["metric"] == "word perplexity":
            rise /= _TOKENS_A_WORD.get(traits.family, _OTHER_TOKENS_A_WORD)
        if rise < _MISPRINT:
            continue
        judged = (
            row["metric"] == "perplexity" and row["dataset"] == "wikitext-2" and "BLOOM" not in row["model"] and 0.005 < rise < 0.5
            and isinstance(cause, Rounding)
            and (row["method"].startswith("EXL2") or (row["method"] in ("GPTQ", "AWQ", "RTN") and cause.bits >= 3))
        )  # fmt: skip
        yield Row(
            "own" if row["source_url"].startswith("benchmarks/") else row["source_url"],
            row["model"],
            "kl" if kl else row["dataset"],
            cause,
            traits,
            rise if kl else max(rise, LEAST_RISE),
            row.get("baseline_value") or 8.0,
            judged,
        )
