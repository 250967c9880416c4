"""A predicted number with its interval and where it comes from."""

from __future__ import annotations

from enum import StrEnum

from passes.record import dataclass


class Basis(StrEnum):
    """How a number came about, best first."""

    EXACT = "exact"
    """Arithmetic on known facts."""
    MEASURED = "measured"
    """Measured on this machine with this model."""
    CALIBRATED = "calibrated"
    """Fitted on data whose error is known and stored with the fit."""
    ASSUMED = "assumed"
    """A stated assumption."""


_ORDER = list(Basis)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with its 90 % interval (`low` … `high`) and basis; the unit is in the name of the field that holds it."""

    value: float
    low: float
    high: float
    basis: Basis

    @classmethod
    def exact(cls, value: float) -> Quantity:
        """Return a number that arithmetic gives."""
        return cls(value, value, value, Basis.EXACT)

    @classmethod
    def relative(cls, value: float, error: float, basis: Basis) -> Quantity:
        """Return a value with a symmetric relative 90 % half width."""
        return cls(value, value * (1 - error), value * (1 + error), basis)

    def __add__(self, other: Quantity) -> Quantity:
        """Sum of independent terms: half widths add in quadrature on each side; the weaker basis wins."""
        value = self.value + other.value
        low = value - ((self.value - self.low) ** 2 + (other.value - other.low) ** 2) ** 0.5
        high = value + ((self.high - self.value) ** 2 + (other.high - other.value) ** 2) ** 0.5
        return Quantity(value, low, high, self.basis if self.basis is other.basis else weaker(self.basis, other.basis))

    def __sub__(self, other: Quantity) -> Quantity:
        """Difference of independent terms, by the same rule."""
        return self + Quantity(-other.value, -other.high, -other.low, other.basis)

    def scaled(self, factor: float) -> Quantity:
        """Return the quantity times a known positive factor."""
        return Quantity(self.value * factor, self.low * factor, self.high * factor, self.basis)


def weaker(*bases: Basis) -> Basis:
    """Return the least certain of several bases."""
    return max(bases, key=_ORDER.index)
