"""NVIDIA ModelOpt's exports, with their settings in config.json or in a file of their own (hf_quant_config.json)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes.formats.format import Format
from passes.formats.published import Published
from passes.ir.model import ModelIR
from passes.ir.quant_config.quant_config import QuantConfig, StorageOf, fields_of, not_understood

#: `quant_algo` -> layout.
_LAYOUTS = {
    "FP8": "fp8-static", "NVFP4": "nvfp4-modelopt", "MIXED_PRECISION": "nvfp4-modelopt", "FP8_PB_WO": "fp8-block",
    "FP8_BLOCK": "fp8-block",
}  # fmt: skip


class ModelOptConfig(QuantConfig):
    """The layout that `quant_algo` names."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """One format for all; mixtures are read as NVFP4 and mended by the headers."""
        algorithm = fields_of(settings, ir).text("quant_algo", "").upper()
        if algorithm not in _LAYOUTS:
            raise not_understood(ir, f"modelopt's quant_algo {algorithm!r}")
        form = Published(_LAYOUTS[algorithm])
        return lambda _: form

    def experts(self, settings: Mapping[str, Any], ir: ModelIR) -> Format | None:
        """As `moe_quant_algo` says."""
        return moe_format(settings)


def moe_format(settings: Mapping[str, Any]) -> Format | None:
    """Return the format of the experts where ModelOpt quantized them another way than the rest."""
    return Published("nvfp4-modelopt") if settings.get("moe_quant_algo") == "NVFP4" else None
