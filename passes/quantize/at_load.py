"""Quantization that the engine does while loading (bitsandbytes, online fp8): the checkpoint stays dense, memory shrinks."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from passes.base import Pass, Stage
from passes.errors import Reason
from passes.formats.at_load import Resident, resident
from passes.ir.distortions import Distortion, WeightRounding
from passes.ir.model import LoadTime, ModelIR
from passes.record import dataclass


@dataclass(frozen=True)
class QuantizeAtLoad(Pass):
    """Have the engine quantize every quantizable matrix with `scheme` (`nf4`, `int8-bnb`, `fp8-online`)."""

    name: ClassVar[str] = "quantize_at_load"
    stage: ClassVar[Stage] = Stage.QUANTIZE
    scheme: str

    @classmethod
    def named(cls, name: str) -> QuantizeAtLoad | None:
        """Return the pass that a scheme's name stands for, None for other names."""
        return None if Resident.named(name) is None else cls(name)

    @property
    def method(self) -> str:
        """Round to nearest: no engine calibrates while loading."""
        return "rtn"

    @property
    def rounds_by(self) -> str:
        """Its method."""
        return self.method

    @property
    def weights_name(self) -> str:
        """Its scheme."""
        return self.scheme

    @property
    def storage(self) -> Resident:
        """How the engine holds a matrix."""
        return resident(self.scheme)

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Refuse all but dense models: only those can be quantized while loading."""
        if ir.quant_method is not None or any(
            linear.storage.is_quantized for block, _ in ir.decoder.counts for linear in block.linears
        ):
            return (Reason("already_quantized", f"{ir.name} is quantized already", "name the dense model"),)
        return ()

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Return the description as it is: nothing changes in the checkpoint; `passes.ir.resident.resident_model` tells what the engine
        holds.
        """
        return replace(ir, load_time=LoadTime(self.scheme))

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return the rounding that the engine does."""
        return (WeightRounding(self.method, ((self.storage, 1.0),)),)

    @property
    def load_time(self) -> bool:
        """Always."""
        return True

    def title(self) -> str:
        """Return `quantize nf4 while loading`."""
        return f"quantize {self.scheme} while loading"

    def text(self) -> str:
        """Write `quantize_at_load{nf4}`."""
        return f"{self.name}{{{self.scheme}}}"
