"""config.json of an EXL2 checkpoint: what ExLlamaV2 and its front ends read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The ExLlamaV2 release whose files this writes.
_VERSION = "0.3.2"


def exl2_config(
    config: Mapping[str, Any], bpw: float, head_bits: int, rows: int, length: int, dataset: str
) -> dict[str, Any]:
    """Return `config` with EXL2's block, and the rotary values where ExLlamaV2 looks for them (`with_rotary_values`)."""
    out = with_rotary_values(config)
    out["quantization_config"] = {
        "quant_method": "exl2",
        "version": _VERSION,
        "bits": bpw,
        "head_bits": head_bits,
        "calibration": {"rows": rows, "length": length, "dataset": dataset},
    }
    return out


def with_rotary_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return `config` with what transformers 5 keeps in `rope_parameters` also where ExLlamaV2 0.3.2's config.py reads it.

    It reads `rope_theta` and `rope_scaling` at the top level or in `text_config`, `vision_config.rope_theta`, and, at the top
    level only, `partial_rotary_factor` and the `original_max_position_embeddings` of longrope; without them it silently takes its
    defaults. What the config already says stays, and a value that it does not have is not made up.
    """
    out = dict(config)
    for part in ("text_config", "vision_config"):
        if isinstance(inner := out.get(part), Mapping):
            rope = _rope(inner)
            out[part] = _with_missing(inner, _read_beside(rope))
            if part == "text_config":
                out = _with_missing(out, _read_at_the_top(rope))
    rope = _rope(out)
    return _with_missing(out, _read_beside(rope) | _read_at_the_top(rope))


def _rope(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part's `rope_parameters`; where every kind of layer has its own, those of full attention.

    ExLlamaV2 knows the sliding layers' base from the architecture (Gemma 3: 10000, architecture.py).
    """
    rope = part.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return {}
    by_kind = [value for value in rope.values() if isinstance(value, Mapping)]
    if not by_kind:
        return rope
    full = rope.get("full_attention")
    return full if isinstance(full, Mapping) else {}


def _read_beside(rope: Mapping[str, Any]) -> dict[str, Any]:
    """What is read in the same part: the base, and the scaling where there is one."""
    out = {"rope_theta": rope["rope_theta"]} if rope.get("rope_theta") is not None else {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    rest = ("rope_theta", "partial_rotary_factor", "type", "rope_type")
    scaling = {key: value for key, value in rope.items() if key not in rest}
    if kind != "default":
        out["rope_scaling"] = {"rope_type": kind} | scaling
    elif "mrope_section" in scaling:
        # transformers 5 calls Qwen2-VL's `mrope` the default with sections; ExLlamaV2 reads them where the type is `mrope`.
        out["rope_scaling"] = {"type": "mrope"} | scaling
    return out


def _read_at_the_top(rope: Mapping[str, Any]) -> dict[str, Any]:
    """What is read at the top level only."""
    names = ["partial_rotary_factor"]
    if rope.get("rope_type") in ("longrope", "su"):
        names.append("original_max_position_embeddings")
    return {name: rope[name] for name in names if rope.get(name) is not None}


def _with_missing(part: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`part` with those of `values` that it lacks."""
    return dict(part) | {key: value for key, value in values.items() if part.get(key) is None}
