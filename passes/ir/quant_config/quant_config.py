"""The contract of a `quantization_config`, and the table of those that are known, by `quant_method`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from passes.errors import InputError, TightfitError
from passes.formats.format import FORMATS, Format, formats
from passes.ir.fields import Fields
from passes.ir.model import ModelIR
from passes.ir.quant_config.module_names import Matches, left_dense, matcher
from passes.record import dataclass
from passes.registry import Registry

#: What a text has that may mean some layers only: a number beside a dot, or what a regular expression or a pattern for characters has.
_OF_A_LAYER = re.compile(r"^re:|^[-+]:|[?\[\\(|]|\.[.+{]|\.[^.]*\d|\d[^.]*\.")
#: Says in which format a matrix (full name) is stored; None where it is left dense, or only the headers say.
StorageOf = Callable[[str], Format | None]


@dataclass(frozen=True, slots=True)
class NamedMatrix:
    """One matrix (`{e}`: of every expert) under the name that it has on disk, `prefix` + `name`.

    `quantizable`: whether recipes quantize it, which is what engines look rules up for. `absent`: whether the checkpoint has no tensors of
    it, and it is named because engines make one matrix of it and its neighbours, which must be treated alike.
    """

    prefix: str
    name: str
    form: Format
    quantizable: bool
    absent: bool = False


def _texts(settings: object) -> Iterator[str]:
    """Every text in settings, keys too, however deep."""
    match settings:
        case str():
            yield settings
        case Mapping():
            for key, value in settings.items():
                yield from _texts(key)
                yield from _texts(value)
        case list() | tuple():
            for entry in settings:
                yield from _texts(entry)


class QuantConfig(ABC):
    """`quantization_config` of one `quant_method`."""

    @abstractmethod
    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Return what the settings of a checkpoint say of its matrices. Raises InputError where they are not understood."""

    def leaves(self, pattern: str) -> Matches:
        """Return the test for what an entry of the list of dense matrices means."""
        return matcher(pattern)

    def tells_layers_apart(self, settings: Mapping[str, Any]) -> bool:
        """Return whether the settings may say of one layer what they do not say of another like it: where any text in them has a layer's
        number, or is a pattern that could. A method that counts layers in another way says so itself.
        """
        return any(_OF_A_LAYER.search(text) for text in _texts(settings))

    def experts(self, settings: Mapping[str, Any], ir: ModelIR) -> Format | None:
        """Return the format of the experts where it is another than that of the rest: then lists name only these."""
        return None

    def stores_head(self, settings: Mapping[str, Any], ir: ModelIR) -> bool:
        """Return whether the output head is quantized, too."""
        return False

    def treats_alike(self, settings: Mapping[str, Any], ir: ModelIR, present: str, absent: str) -> bool:
        """Return whether the settings say of a matrix (full name) without tensors in the checkpoint what they say of one that has some."""
        dense, storage_of = left_dense(fields_of(settings, ir), self.leaves, []), self.read(settings, ir)
        return dense(present) == dense(absent) and storage_of(present) == storage_of(absent)

    def naming_absent(self, name: str) -> str:
        """Return how a checkpoint's settings can be mended that do not name a matrix without tensors."""
        return f"{name} in every list of quantization_config that has its neighbours, or formats that leave them dense"

    def write(self, ir: ModelIR, matrices: Sequence[NamedMatrix]) -> dict[str, Any]:
        """Return the settings of a model whose matrices are stored in formats of this method, others dense.

        Raises TightfitError where one checkpoint cannot hold them together, or where the method is read only.
        """
        raise incompatible(matrices)


class InHeaders(QuantConfig):
    """What a format without a reader of its own gets (ExLlama's): only the headers say how each matrix is stored."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Return nothing before the headers are read."""
        return lambda _: None


#: `quant_method` of a checkpoint, as tools spell it.
QUANT_CONFIGS: Registry[type[QuantConfig]] = Registry(
    "quant_method",
    {
        "compressed-tensors": "passes.ir.quant_config.compressed_tensors:CompressedTensorsConfig",
        "compressed_tensors": "passes.ir.quant_config.compressed_tensors:CompressedTensorsConfig",
        "gptq": "passes.ir.quant_config.gptq:GptqConfig",
        "gptq_marlin": "passes.ir.quant_config.gptq:GptqConfig",
        "auto-round": "passes.ir.quant_config.published.auto_round:AutoRoundConfig",
        "autoround": "passes.ir.quant_config.published.auto_round:AutoRoundConfig",
        "awq": "passes.ir.quant_config.awq:AwqConfig",
        "fp8": "passes.ir.quant_config.published.fp8:Fp8Config",
        "fbgemm_fp8": "passes.ir.quant_config.published.one_layout:OneLayout",
        "mxfp4": "passes.ir.quant_config.published.one_layout:OneLayout",
        "bitsandbytes": "passes.ir.quant_config.published.bitsandbytes:BitsAndBytesConfig",
        "modelopt": "passes.ir.quant_config.published.modelopt:ModelOptConfig",
        "quark": "passes.ir.quant_config.published.quark:QuarkConfig",
        "torchao": "passes.ir.quant_config.published.torchao:TorchAoConfig",
        "hqq": "passes.ir.quant_config.published.hqq:HqqConfig",
    },
    "tightfit.quant_configs",
)


def quant_config(method: str, ir: ModelIR) -> QuantConfig:
    """Return the reader and writer of a `quant_method`. Raises InputError for one that is not known."""
    # ModelOpt's names go on: `modelopt_fp4`, `modelopt_mixed`.
    stem = "modelopt" if method.startswith("modelopt") else method
    # What other packages add is looked for last: that reads the metadata of everything installed.
    if stem in QUANT_CONFIGS.names():
        return QUANT_CONFIGS.find(stem)()
    if any(FORMATS.find(kind).quant_method == method for kind in FORMATS.names()):
        return InHeaders()
    if stem in QUANT_CONFIGS.names(installed=True):
        return QUANT_CONFIGS.find(stem)()
    if any(form.quant_method == method for form in formats()):
        return InHeaders()
    raise not_understood(ir, f"quant_method {method!r}")


_REMEDY = "Name the dense model that it was made from."


def not_understood(ir: ModelIR, what: str) -> InputError:
    """Return the error for a quantization that nobody here can read."""
    return InputError(f"{ir.name}: {what} is not understood", remedy=_REMEDY)


def fields_of(settings: Mapping[str, Any], ir: ModelIR) -> Fields:
    """Return the settings of a checkpoint as they are to be read: key by key, by type and range."""
    return Fields(settings, ir.name, "quantization_config", remedy=_REMEDY)


def group_size(said: Fields, default: int | None = None) -> int:
    """Return the inputs that share a scale, -1 for a whole row."""
    size = said.integer("group_size", default=default, at_least=-1)
    if size == 0:
        raise said.wrong("group_size", "a whole number of at least 1, or -1 for a whole row", size)
    return size


def incompatible(matrices: Sequence[NamedMatrix]) -> TightfitError:
    """Return the error for formats that no single `quantization_config` can describe."""
    kinds = ", ".join(sorted({matrix.form.kind for matrix in matrices if matrix.form.is_quantized}))
    return TightfitError(
        f"one checkpoint cannot hold these formats together: {kinds}", remedy="choose formats of one family"
    )
