"""The algorithms as the walk calls them: one matrix (or several stacked), its Hessian, the format to store it in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from passes.formats.format import Format, Quantized
from passes.quantize.gptq import GptqOptions, gptq
from passes.quantize.rtn import round_blocks_to_nearest, round_to_nearest
from passes.quantize.scales import ScaleSearch
from passes.reason import InputError

if TYPE_CHECKING:
    import torch

    from passes.walk import Method


@dataclass(frozen=True)
class RoundToNearest:
    """No calibration: every weight to its nearest level."""

    needs_hessian: ClassVar[bool] = False

    def quantize(
        self, weight: torch.Tensor, hessian: torch.Tensor | None, form: Format, scale_dtype: torch.dtype, where: str
    ) -> tuple[Quantized, float]:
        """Codes, and the squared error as loss."""
        assert form.grid is not None
        block: tuple[int, int] | None = getattr(form, "block", None)
        if block is not None:
            quantized = round_blocks_to_nearest(weight, block, form.grid, scale_dtype)
        else:
            quantized = round_to_nearest(weight, form.grid, scale_dtype)
        return quantized, 0.0


@dataclass(frozen=True)
class Gptq:
    """GPTQ on an integer grid; on a float grid (fp8), whose spacing follows the weights, round to nearest."""

    options: GptqOptions
    needs_hessian: ClassVar[bool] = True

    def quantize(
        self, weight: torch.Tensor, hessian: torch.Tensor | None, form: Format, scale_dtype: torch.dtype, where: str
    ) -> tuple[Quantized, float]:
        """Codes and GPTQ's own loss."""
        assert form.grid is not None
        if hessian is None or form.grid.kind == "float":
            return RoundToNearest().quantize(weight, None, form, scale_dtype, where)
        return gptq(weight, hessian, form.grid, scale_dtype, self.options, where)


#: GPTQ as it is run by default. Chosen on the de-gridded twin of SmolLM2 only (benchmarks/quantize.py, docs/quantization.md).
GPTQ_DEFAULT = GptqOptions(order="static", damping=0.01, search=ScaleSearch())


def method(name: str, form: Format) -> Method:
    """The algorithm that a quantize pass names. Raises InputError for one that the walk does not run."""
    if name == "rtn":
        return RoundToNearest()
    if name == "gptq":
        if getattr(form, "desc_act", False):
            return Gptq(GptqOptions("full", GPTQ_DEFAULT.damping, GPTQ_DEFAULT.search))
        return Gptq(GPTQ_DEFAULT)
    raise InputError(f"the method {name!r} cannot be executed here", remedy="choose rtn or gptq")
