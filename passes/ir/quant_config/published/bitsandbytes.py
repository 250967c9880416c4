"""bitsandbytes checkpoints: NF4 with double quantization, or LLM.int8()."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes.formats.published import Published
from passes.ir.model import ModelIR
from passes.ir.quant_config.quant_config import QuantConfig, StorageOf, fields_of


class BitsAndBytesConfig(QuantConfig):
    """4 or 8 bits."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Read one format for all."""
        form = Published("int8-bnb-stored" if fields_of(settings, ir).flag("load_in_8bit") else "nf4")
        return lambda _: form
