"""config.json of an EXL2 checkpoint: what ExLlamaV2 and its front ends read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The ExLlamaV2 release whose files this writes.
_VERSION = "0.3.2"


def exl2_config(
    config: Mapping[str, Any], bpw: float, head_bits: int, rows: int, length: int, dataset: str
) -> dict[str, Any]:
    """`config` with EXL2's block, and the rotary values where ExLlamaV2 looks for them.

    ExLlamaV2 0.3.2 reads `rope_theta` and `rope_scaling` at the top level only and silently takes 10000 without; a config of
    transformers 5 keeps them in `rope_parameters`.
    """
    out = dict(config)
    rope = config.get("rope_parameters")
    if isinstance(rope, Mapping):
        out.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        if rope.get("rope_type", "default") != "default":
            out.setdefault("rope_scaling", {key: value for key, value in rope.items() if key != "rope_theta"})
    out["quantization_config"] = {
        "quant_method": "exl2",
        "version": _VERSION,
        "bits": bpw,
        "head_bits": head_bits,
        "calibration": {"rows": rows, "length": length, "dataset": dataset},
    }
    return out
