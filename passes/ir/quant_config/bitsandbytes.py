"""bitsandbytes checkpoints: NF4 with double quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes.formats.published import Published
from passes.ir.model import ModelIR
from passes.ir.quant_config.quant_config import QuantConfig, StorageOf, fields_of, not_understood


class BitsAndBytesConfig(QuantConfig):
    """NF4; its 8-bit checkpoints are not read."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """One format for all."""
        if fields_of(settings, ir).flag("load_in_8bit"):
            raise not_understood(ir, "bitsandbytes in 8 bits")
        form = Published("nf4")
        return lambda _: form
