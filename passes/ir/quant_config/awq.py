"""AutoAWQ's settings: one format for all matrices that are not left dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from passes.formats.awq import Awq
from passes.formats.published import Published
from passes.ir.model import ModelIR
from passes.ir.quant_config.module_names import Matches, matcher
from passes.ir.quant_config.quant_config import (
    NamedMatrix,
    QuantConfig,
    StorageOf,
    fields_of,
    incompatible,
    not_understood,
)

_BITS = 4
#: `version` by what is stored: as for GEMM (ExLlama's kernels repack that themselves), or in a layout of its own.
_AS_GEMM = ("gemm", "exllama", "exllamav2", "ipex")
_LAYOUTS = {"gemv": "gemv-awq", "gemv_fast": "gemv-fast-awq"}


class AwqConfig(QuantConfig):
    """Group size and zero points."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Read one format for all, by the kernels that it was packed for."""
        said = fields_of(settings, ir)
        bits, packed = said.integer("bits", "w_bit", default=4), said.text("version", "gemm").lower()
        if bits != _BITS:
            raise not_understood(ir, f"AWQ in {bits} bits")
        if packed not in (*_AS_GEMM, *_LAYOUTS):
            raise not_understood(ir, f"AWQ's version {packed!r}")
        size = said.integer("group_size", "q_group_size", default=128, at_least=1)
        symmetric = not said.flag("zero_point", default=True)
        form = Awq(size, symmetric) if packed in _AS_GEMM else Published(_LAYOUTS[packed], size)
        return lambda _: form

    def leaves(self, pattern: str) -> Matches:
        """Match any name that holds the entry, as AutoAWQ and vLLM read the list (`is_layer_skipped_awq`)."""
        return matcher(pattern) if "*" in pattern or pattern.startswith("re:") else lambda name: pattern in name

    def write(self, ir: ModelIR, matrices: Sequence[NamedMatrix]) -> dict[str, Any]:
        """Write the settings of the one format there may be."""
        forms = {matrix.form for matrix in matrices if isinstance(matrix.form, Awq)}
        if len(forms) > 1:
            raise incompatible(matrices)
        [form] = forms
        return {
            "quant_method": form.quant_method,
            "bits": form.bits,
            "group_size": form.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": None,
        }
