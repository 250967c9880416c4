"""transformers' FineGrainedFP8 and AutoFP8 checkpoints (`quant_method: fp8`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes.formats.format import Format
from passes.formats.fp4 import Mxfp4
from passes.formats.published import Published
from passes.ir.model import ModelIR
from passes.ir.quant_config.published.modelopt import moe_format
from passes.ir.quant_config.quant_config import QuantConfig, StorageOf, fields_of


class Fp8Config(QuantConfig):
    """Blocks, or a scale a matrix; DeepSeek V4's experts in four bits."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Read one layout for all but the experts of DeepSeek V4."""
        said = fields_of(settings, ir)
        if said.has("weight_block_size"):
            form = Published("fp8-block", said.counts("weight_block_size", 2, at_least=1)[0])
        else:
            form = Published("fp8-static" if said.get("activation_scheme") == "static" else "fp8-tensor")
        return lambda _: form

    def experts(self, settings: Mapping[str, Any], ir: ModelIR) -> Format | None:
        """Read the experts as NVIDIA's exports of DeepSeek V4 say, or as DeepSeek's own."""
        own = Mxfp4() if ir.config.get("expert_dtype") == "fp4" else None
        return moe_format(settings) or own
