"""Rows of `data/quality_refs.jsonl` as the quality fit sees them: which scheme, which model, how large a loss."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from passes.formats.format import Rounding
from planner.quality.features import Traits
from planner.quality.traits import named_traits

DATA = Path(__file__).parent / "data"

#: 10^9 weights where the name does not say them, or rounds them.
_SIZES = {
    "phi-3.5-mini-instruct": 3.8, "phi-4-mini-instruct": 3.8, "mistral-large-instruct-2407": 123, "mixtral 8x7b": 46.7,
    "olmoe-1b-7b-0924": 6.9, "granite-3.0-1b-a400m-base": 1.33,
}  # fmt: skip
_EXACT = {
    ("llama-1", 7): 6.74, ("llama-1", 13): 13.0, ("llama-1", 30): 32.5, ("llama-1", 65): 65.3, ("llama-2", 7): 6.74,
    ("llama-2", 70): 69.0, ("llama-3", 1): 1.24, ("llama-3", 3): 3.21, ("llama-3", 8): 8.03, ("llama-3", 8.1): 8.03,
    ("llama-3", 70): 70.6, ("mistral", 7): 7.25,
}  # fmt: skip

#: Tables whose KL divergences stand for a perplexity: they print no perplexity of the same rows.
_KL_SOURCES = ("https://github.com/turboderp-org/exllamav3", "benchmarks/")

#: Less than this is within the noise of perplexities as they are printed; a KL divergence has none of it.
_LEAST_RISE, _LEAST_KL = 0.002, 0.0001

_SCHEMES: tuple[tuple[str, Callable[[re.Match[str], dict[str, Any]], Rounding]], ...] = (
    (r"(EXL2|EXL3) .*", lambda m, r: Rounding(m[1].lower(), r["bits"])),
    (r"GGUF iq.*", lambda m, r: Rounding("gguf-iq", r.get("effective_bpw", 16))),
    (r"GGUF q\d_k.*", lambda m, r: Rounding("gguf-k", r.get("effective_bpw", 16))),
    (r"GGUF q\d_[01].*", lambda m, r: Rounding("gguf-0", r.get("effective_bpw", 16))),
    (r"(GPTQ|RTN|AWQ|OmniQuant|EfficientQAT)", lambda m, r: Rounding(m[1].lower(), r["bits"], int(r.get("group_size") or 0))),
    (r"(AWQ|OmniQuant) \(as reported there\)", lambda m, r: Rounding(m[1].lower(), r["bits"], -1)),
    (r"(GPTQ)-R W4A16 g128|(GPTQ) \(modified.*|(AWQ) W4A16 g128|(AWQ) 4bit|(AWQ) INT4", lambda m, r: Rounding(m[m.lastindex or 0].lower(), 4, 128)),
    (r"INT4 (AWQ|RTN) \(ONNX\)", lambda m, r: Rounding(f"{m[1].lower()}-onnx", 4, 128)),
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
    (r"(QuaRot|Atom) W4A4.*", lambda m, r: Rounding(f"{m[1].lower()}-w4a4", 0)),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One published loss: `rise` is ln(perplexity / baseline), or a KL divergence where `metric` is `kl`."""

    source: str
    model: str
    metric: str
    scheme: Rounding
    traits: Traits
    rise: float
    baseline: float
    judged: bool
    """Whether it is of the kind that the accuracy goals are about: GPTQ, AWQ, RTN and EXL2 on WikiText-2."""

    @property
    def group(self) -> tuple[str, str]:
        """One table's figures of one model: held out together."""
        return self.source, self.model


def raw_rows() -> list[dict[str, Any]]:
    """The published table, and what `benchmarks/quantize.py` measured, as they are stored."""
    return [
        json.loads(line)
        for name in ("quality_refs", "quality_own")
        for line in (DATA / f"{name}.jsonl").read_text().splitlines()
    ]


def traits_by_name(name: str) -> Traits:
    """Traits of a model of the table, its size read from its name."""
    found = re.search(r"([\d.]+) ?([bBmM])(?![a-z])", name)
    size = _SIZES.get(name.lower()) or (float(found[1]) * (1e-3 if found[2] in "mM" else 1) if found else 7.0)
    traits = named_traits(name, size)
    return replace(traits, size_b=_EXACT.get((traits.family, size), size))


def scheme_of(row: dict[str, Any]) -> Rounding | None:
    """The scheme a row speaks of; None where it is of another kind (KV cache, sparsity) or low trust."""
    method, model = row["method"], row["model"]
    if row.get("kv_dtype") not in (None, "fp16") or row.get("sparsity"):
        return None
    # Retraining on web text pulls an instruct model's perplexity on such text down: not a loss of quantization alone.
    if method == "EfficientQAT" and "Instruct" in model:
        return None
    # The printed 70B figures of this table are around 1e5; its LLaMA-2 q2_K figure contradicts its own ratio.
    if ("SpinQuant" in row["source_url"] and "Llama-3-70B" in model) or (
        "ik_llama" in row["source_url"] and "2-7B" in model
    ):
        return None
    for pattern, build in _SCHEMES:
        match = re.fullmatch(pattern, method, re.IGNORECASE)
        if match:
            return build(match, row)
    return None


def weight_rows() -> Iterator[Row]:
    """Losses by storing weights: perplexity on WikiText-2 (any protocol); KL divergences of exllamav3's plot and of our own benchmarks."""
    for row in raw_rows():
        kl = row["source_url"].startswith(_KL_SOURCES) and row["metric"].startswith("KL")
        if not kl and not (
            row["dataset"].startswith("wikitext") and row["metric"] in ("perplexity", "word perplexity")
        ):
            continue
        scheme = scheme_of(row)
        if scheme is None or scheme.bits > 9 or row["value"] <= 0 or not (kl or row.get("baseline_value")):
            continue
        rise = row["value"] if kl else math.log(row["value"] / row["baseline_value"])
        if rise < (_LEAST_KL if kl else _LEAST_RISE):
            continue
        judged = (
            row["metric"] == "perplexity" and row["dataset"] == "wikitext-2" and "BLOOM" not in row["model"] and 0.005 < rise < 0.5
            and (row["method"].startswith("EXL2") or (row["method"] in ("GPTQ", "AWQ", "RTN") and scheme.bits >= 3))
        )  # fmt: skip
        metric = "kl" if kl else row["dataset"] if row["dataset"] != "wikitext-2" else "wikitext-2"
        yield Row(
            row["source_url"],
            row["model"],
            metric,
            scheme,
            traits_by_name(row["model"]),
            rise,
            row.get("baseline_value") or 8.0,
            judged,
        )
