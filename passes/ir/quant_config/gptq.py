"""GPTQ's settings (AutoGPTQ, GPTQModel; AutoRound writes the same): those of most matrices, and rules for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from passes.formats.gptq import Gptq
from passes.ir.model import ModelIR
from passes.ir.quant_config.gptq_rules import format_of, rules
from passes.ir.quant_config.quant_config import NamedMatrix, QuantConfig, StorageOf


class GptqConfig(QuantConfig):
    """Bits, group size, zero points, order; `dynamic` where matrices differ."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """The settings, and what `dynamic` makes of them for a name."""
        version = 2 if settings.get("checkpoint_format") == "gptq_v2" else 1
        bits, size = int(settings["bits"]), int(settings["group_size"])
        base = Gptq(bits, size, bool(settings.get("sym", True)), bool(settings.get("desc_act", False)), version)
        return format_of(base, settings.get("dynamic") or {})

    def write(self, ir: ModelIR, matrices: Sequence[NamedMatrix]) -> dict[str, Any]:
        """The settings of most matrices; rules for the others."""
        [(base, _)] = Counter(matrix.form for matrix in matrices if isinstance(matrix.form, Gptq)).most_common(1)
        others = [matrix for matrix in matrices if matrix.quantizable and matrix.form != base]
        dynamic = rules((matrix.prefix, matrix.name, matrix.form) for matrix in others)
        settings = {
            "quant_method": base.quant_method,
            "bits": base.bits,
            "group_size": base.group_size,
            "desc_act": base.desc_act,
            "sym": base.symmetric,
            "lm_head": False,
            "true_sequential": True,
            "checkpoint_format": "gptq" if base.version == 1 else "gptq_v2",
        }
        return settings | ({"dynamic": dynamic} if dynamic else {})
