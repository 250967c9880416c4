"""Methods that store every matrix in one published layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes.formats.published import published_by
from passes.ir.model import ModelIR
from passes.ir.quant_config.quant_config import QuantConfig, StorageOf


class OneLayout(QuantConfig):
    """The layout that goes by the method's name."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Read one format for all."""
        form = published_by(str(settings["quant_method"]))
        return lambda _: form
