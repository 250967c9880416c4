"""Kernels as the speed model knows them: the family that efficiencies are fitted for, and the arithmetic. Engines choose among them."""

from __future__ import annotations

from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class Kernel:
    """`family` names the row of fitted efficiencies; `arithmetic` the card's rate it is limited by: bf16, fp8, int8, fp4."""

    family: str
    arithmetic: str


#: Kernel families that have fitted efficiencies.
FAMILIES = ("w16", "w8", "w4", "awq", "w8a8", "fp8", "fp4", "mx", "bnb", "exl", "exl-gptq")
