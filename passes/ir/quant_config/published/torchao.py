"""torchao's checkpoints, as transformers saves them: one config of a matrix for all, or one a module (`FqnToConfig`, before 0.15
`ModuleFqnToConfig`).
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

#: A config's class (torchao/quantization/quant_api.py, 0.18 and before), in small letters and without separators -> layout.
_LAYOUTS = {
    "int4weightonly": "torchao-int4", "float8dynamicactivationint4weight": "torchao-int4", "int8weightonly": "torchao-int8",
    "int8dynamicactivationint8weight": "torchao-int8", "int8staticactivationint8weight": "torchao-int8",
    "int8dynamicactivationint4weight": "torchao-intx", "int8dynamicactivationintxweight": "torchao-intx", "intxweightonly": "torchao-intx",
    "float8weightonly": "torchao-fp8", "float8dynamicactivationfloat8weight": "torchao-fp8",
}  # fmt: skip
#: Layouts whose groups a config may set.
_GROUPED = ("torchao-int4", "torchao-intx")
_BY_MODULE = ("fqn_to_config", "module_fqn_to_config")
#: Where a config's inputs that share a scale stand, beside `group_size`.
_GRANULARITIES = ("weight_granularity", "granularity")


class TorchAoConfig(QuantConfig):
    """What `quant_type` says."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Look a module's own config up, else take the default."""
        said = fields_of(settings, ir)
        if not isinstance(said.get("quant_type"), Mapping):
            # Before configs were objects: a name and its arguments.
            form = _layout(said.text("quant_type"), said.inside("quant_type_kwargs", {}), ir)
            return lambda _: form
        config = said.inside("quant_type").inside("default")
        data = config.inside("_data", {})
        modules = data.inside(next((key for key in _BY_MODULE if data.has(key)), _BY_MODULE[0]), {})
        if not modules.values:
            form = _format(config, ir)
            return lambda _: form
        own = {name: _format(modules.inside(name), ir) if modules.has(name) else None for name in modules.values}
        rest, differs = own.pop("_default", None), by_name(own)
        return lambda name: differs(name, rest)


def _format(config: Fields, ir: ModelIR) -> Format:
    return _layout(config.text("_type"), config.inside("_data", {}), ir)


def _layout(name: str, data: Fields, ir: ModelIR) -> Format:
    plain = name.lower().replace("_", "").removesuffix("config")
    if plain not in _LAYOUTS:
        raise not_understood(ir, f"torchao's {name}")
    layout = _LAYOUTS[plain]
    return Published(layout, _group(data) if layout in _GROUPED else 0)


def _group(data: Fields) -> int:
    """Inputs that share a scale; 0 where the layout's own are meant."""
    if data.has("group_size"):
        return data.integer("group_size", at_least=1)
    said = next((data.inside(key) for key in _GRANULARITIES if data.has(key)), None)
    return said.inside("_data", {}).integer("group_size", default=0) if said is not None else 0
