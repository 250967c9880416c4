"""HQQ checkpoints (`quant_method: hqq`), as transformers saves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes.formats.published import Published
from passes.ir.model import ModelIR
from passes.ir.quant_config.quant_config import QuantConfig, StorageOf, fields_of, not_understood


class HqqConfig(QuantConfig):
    """Bits and group size of all matrices."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Read one format for all."""
        said = fields_of(settings, ir)
        said = said.inside("quant_config", said.values)
        weights = said.inside("weight_quant_params", said.values)
        bits = weights.integer("nbits", at_least=1)
        if bits not in (2, 4, 8):
            raise not_understood(ir, f"HQQ in {bits} bits")
        form = Published(f"hqq-{bits}", weights.integer("group_size", default=64, at_least=1))
        return lambda _: form
