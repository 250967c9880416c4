"""AMD Quark's exports: one scheme for all matrices, others by pattern in `layer_quant_config`, dense ones in `exclude`.

Schemes as vLLM 0.32 tells them apart (`quantization/quark/quark.py:get_scheme_cls`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes.formats.format import Format
from passes.formats.published import Published
from passes.ir.fields import Fields
from passes.ir.model import ModelIR
from passes.ir.quant_config.module_names import by_name
from passes.ir.quant_config.quant_config import QuantConfig, StorageOf, fields_of, not_understood

#: (type of the weights, what shares a scale) -> layout; where inputs have a stored scale, `-static` of it.
_LAYOUTS = {
    ("fp8_e4m3", "per_tensor"): "quark-fp8", ("fp8_e4m3", "per_channel"): "quark-fp8-row", ("fp8_e4m3", "per_block"): "quark-fp8-block",
    ("int8", "per_tensor"): "quark-int8", ("int8", "per_channel"): "quark-int8", ("fp4", "per_group"): "quark-mx",
    ("int4", "per_group"): "quark-int4", ("uint4", "per_group"): "quark-int4", ("int4", "per_channel"): "quark-int4",
}  # fmt: skip
_STATIC = ("quark-fp8", "quark-int8")


class QuarkConfig(QuantConfig):
    """What the whole model's scheme, or a layer's own, says."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Look a layer's pattern up, else take the rest's."""
        said = fields_of(settings, ir)
        rest = _format(said.inside("global_quant_config"), ir)
        layers = said.inside("layer_quant_config", {})
        own = by_name(
            {name: _format(layers.inside(name), ir) for name in layers.values if _weights(layers.inside(name))}
        )
        return lambda name: own(name, rest)


def _weights(said: Fields) -> Fields | None:
    """What is said of the weights: where there are two steps of rounding, of the last, which is what is stored."""
    if not said.has("weight"):
        return None
    listed = isinstance(said.get("weight"), list)
    return said.entries("weight")[-1] if listed else said.inside("weight")


def _format(said: Fields, ir: ModelIR) -> Format | None:
    """The layout of a scheme; None where it leaves weights as they are."""
    weights = _weights(said)
    if weights is None:
        return None
    kind, shared = weights.text("dtype", ""), weights.text("qscheme", "")
    layout = _LAYOUTS.get((kind, shared))
    if layout is None:
        raise not_understood(ir, f"quark's {kind} {shared}")
    inputs = said.get("input_tensors")
    static = layout in _STATIC and isinstance(inputs, Mapping) and inputs.get("is_dynamic") is False
    size = weights.integer("group_size", default=0) if shared == "per_group" else 0
    return Published(f"{layout}-static" if static else layout, size)
