"""AutoRound's exports (`quant_method: auto-round`): the layouts of other tools, and `extra_config` for matrices that differ.

Read as vLLM 0.32 does (`quantization/inc/config_parser.py`): a key of `extra_config` is a module's name, the end of one, or, where it
holds a character of regular expressions, a pattern searched for in the name; 16 bits or more leave a matrix dense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes.formats.awq import Awq
from passes.formats.format import Format
from passes.formats.gptq import Gptq
from passes.formats.published import Published
from passes.ir.fields import Fields
from passes.ir.model import ModelIR
from passes.ir.quant_config.compressed_tensors import described, read_group
from passes.ir.quant_config.module_names import by_name
from passes.ir.quant_config.quant_config import QuantConfig, StorageOf, fields_of, group_size, not_understood

_DENSE_BITS = 16
_PATTERN = frozenset(r"*+?^$()[]{}|\\")


class AutoRoundConfig(QuantConfig):
    """The format of most matrices, and what `extra_config` makes of it for a name."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Look a name up in `extra_config`, else take the format of the rest."""
        said = fields_of(settings, ir)
        rest = _format(said, said, ir)
        extra = said.inside("extra_config", {})
        forms = {_searched(name): _format(extra.inside(name), said, ir) for name in extra.values}
        differs = by_name(forms)
        return lambda name: differs(name, rest)

    def stores_head(self, settings: Mapping[str, Any], ir: ModelIR) -> bool:
        """Tell whether `extra_config` names it."""
        return any(name.endswith("lm_head") for name in fields_of(settings, ir).mapping("extra_config", {}))


def _searched(name: str) -> str:
    return f"re:.*(?:{name})" if _PATTERN & set(name) else name


def _format(said: Fields, rest: Fields, ir: ModelIR) -> Format | None:
    """The format that a matrix's own values, completed by those of the rest, stand for; None for a dense one."""
    values = Fields({**rest.values, **said.values}, said.name, said.path, remedy=said.remedy)
    bits, kind, packing = (
        values.integer("bits", at_least=1),
        values.text("data_type", "int"),
        values.text("packing_format", ""),
    )
    if bits >= _DENSE_BITS:
        return None
    if kind == "int" and "awq" in packing + values.text("backend", ""):
        return Awq(group_size(values), values.flag("sym", default=True))
    if kind == "int" and bits in (2, 3, 4, 8):
        return Gptq(bits, group_size(values), values.flag("sym", default=True), indexed=False)
    if kind.startswith("mx_fp") and bits == 8:
        return Published("mxfp8")
    if kind.startswith(("mx_fp", "nv_fp")) and bits == 4:
        # Its `llm_compressor` packing is compressed-tensors'.
        scheme = {"num_bits": bits, "type": "float", "group_size": group_size(values)}
        inputs = {"input_activations": scheme} if values.integer("act_bits", default=_DENSE_BITS) < _DENSE_BITS else {}
        return described(read_group(Fields({"weights": scheme, **inputs}, values.name, values.path), values), ir)
    if kind in ("fp", "fp8") and bits == 8:
        if not isinstance(values.get("group_size"), int):
            return Published("fp8-block", values.counts("group_size", 2, at_least=1)[0])
        static = values.get("act_dynamic") is False
        rows = bool(values.get("group_size"))
        return Published(
            {(True, True): "fp8-static-rows", (True, False): "fp8-row", (False, True): "fp8-static"}.get(
                (rows, static), "fp8-tensor"
            )
        )
    raise not_understood(ir, f"auto-round's {kind} of {bits} bits")
