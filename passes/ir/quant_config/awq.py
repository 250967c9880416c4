"""AutoAWQ's settings: one format for all matrices that are not left dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from passes.formats.awq import Awq
from passes.ir.model import ModelIR
from passes.ir.quant_config.quant_config import NamedMatrix, QuantConfig, StorageOf, fields_of, incompatible


class AwqConfig(QuantConfig):
    """Group size and zero points."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """One format for all."""
        said = fields_of(settings, ir)
        form = Awq(said.integer("group_size", default=128, at_least=1), not said.flag("zero_point", default=True))
        return lambda _: form

    def write(self, ir: ModelIR, matrices: Sequence[NamedMatrix]) -> dict[str, Any]:
        """The settings of the one format there may be."""
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
