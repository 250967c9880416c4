"""`quantization_config` of config.json, from the description of the finished model: what engines read to load a checkpoint."""

from __future__ import annotations

from typing import Any

from passes.formats.awq import Awq
from passes.formats.compressed_tensors import FloatQuantized, IntQuantized, PackQuantized
from passes.formats.dense import Dense
from passes.formats.format import Format
from passes.formats.fp4 import Mxfp4, Nvfp4
from passes.formats.gptq import Gptq
from passes.ir.model import ModelIR
from passes.reason import TightfitError

_COMPRESSED = (PackQuantized, IntQuantized, FloatQuantized, Nvfp4, Mxfp4)


def quantization_config(ir: ModelIR) -> dict[str, Any] | None:
    """The `quantization_config` of a model whose matrices are stored as `ir` says; None for a dense one without KV scales.

    Raises TightfitError where the formats of its matrices cannot stand in one checkpoint.
    """
    by_format: dict[Format, list[str]] = {}
    for stack in ir.stacks:
        for layer in range(len(stack.layers)):
            for linear in stack.block(layer).linears:
                parts = (
                    linear.stacking.parts
                    if linear.stacking and not isinstance(linear.storage, Dense)
                    else ((linear.name, 0),)
                )
                by_format.setdefault(linear.storage, []).extend(stack.layer_prefix(layer) + part for part, _ in parts)
    for linear in ir.outer:
        by_format.setdefault(linear.storage, []).append(linear.name)
    packed = [form for form in by_format if not isinstance(form, Dense)]
    if not packed and not ir.kv_cache.scales:
        return None
    if all(isinstance(form, _COMPRESSED) for form in packed):
        return _compressed(ir, by_format)
    if len(packed) == 1 and isinstance(packed[0], Gptq | Awq):
        return packed[0].config()
    kinds = ", ".join(sorted({form.kind for form in packed}))
    raise TightfitError(
        f"one checkpoint cannot hold these formats together: {kinds}", remedy="choose formats of one family"
    )


def _compressed(ir: ModelIR, by_format: dict[Format, list[str]]) -> dict[str, Any]:
    packed = {form: names for form, names in by_format.items() if isinstance(form, _COMPRESSED)}
    dense = [
        name for form, names in by_format.items() if isinstance(form, Dense) for name in names if "embed" not in name
    ]
    groups, kinds = {}, set()
    for number, (form, names) in enumerate(packed.items()):
        assert isinstance(form, _COMPRESSED)
        kinds.add(form.kind)
        targets = ["Linear"] if len(packed) == 1 else sorted(names)
        groups[f"group_{number}"] = {"targets": targets, "format": form.kind, **form.scheme()}
    return {
        "quant_method": "compressed-tensors",
        "format": kinds.pop() if len(kinds) == 1 else ("mixed-precision" if kinds else "dense"),
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "config_groups": groups,
        "ignore": sorted({*dense, "lm_head"}) if groups else [],
        "kv_cache_scheme": _kv_scheme() if ir.kv_cache.scales else None,
    }


def _kv_scheme() -> dict[str, Any]:
    """Static per-tensor e4m3 scales, `k_scale` and `v_scale` of every attention."""
    return {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False, "observer": "minmax",
        "group_size": None, "block_structure": None, "actorder": None, "observer_kwargs": {},
    }  # fmt: skip
