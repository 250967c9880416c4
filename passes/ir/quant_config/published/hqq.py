"""HQQ checkpoints (`quant_method: hqq`), as transformers saves them: one set of parameters for all, or one an end of a matrix's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes.formats.format import Format
from passes.formats.published import Published
from passes.ir.fields import Fields
from passes.ir.model import ModelIR
from passes.ir.quant_config.module_names import by_name
from passes.ir.quant_config.quant_config import QuantConfig, StorageOf, fields_of, not_understood

_PARAMETERS = "weight_quant_params"
_BITS = (1, 2, 3, 4, 8)


class HqqConfig(QuantConfig):
    """Bits and group size of all matrices, or of those that a dynamic config names (`self_attn.q_proj`)."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Look a matrix's own parameters up where there are some, else read one format for all."""
        said = fields_of(settings, ir)
        said = said.inside("quant_config", said.values)
        named = [key for key in said.values if isinstance(said.get(key), Mapping) and _PARAMETERS in said.mapping(key)]
        if not named:
            form = _format(said.inside(_PARAMETERS, said.values), ir)
            return lambda _: form
        own: dict[str, Format | None] = {key: _format(said.inside(key).inside(_PARAMETERS), ir) for key in named}
        find = by_name(own)
        return lambda name: find(name, None)


def _format(weights: Fields, ir: ModelIR) -> Format:
    bits = weights.integer("nbits", at_least=1)
    if bits not in _BITS:
        raise not_understood(ir, f"HQQ in {bits} bits")
    return Published(f"hqq-{bits}", weights.integer("group_size", default=64, at_least=1))
