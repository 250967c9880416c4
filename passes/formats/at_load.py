"""How engines hold matrices that they quantize while loading: exact resident bytes. The checkpoint itself stays dense.

`nf4`: bitsandbytes NF4, two weights a byte, one fp32 maximum for 64 weights (vLLM's loader undoes bitsandbytes' double quantization
of these maxima while loading). `int8-bnb`: LLM.int8(), int8 weights, one fp32 statistic an output. `fp8-online`: e4m3 weights, one fp32
scale a matrix (vLLM `--quantization fp8` on a 16-bit checkpoint).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Self

from passes.errors import Reason, TightfitError, unknown_name
from passes.formats.format import Format, KernelFamily, Quantized, Rounding
from passes.formats.tensor import Tensor
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

_Part = tuple[str, str, tuple[int, ...]]
_NF4_BLOCK = 64


def _nf4(n: int, k: int) -> tuple[_Part, ...]:
    return ("weight", "U8", (-(-n * k // 2), 1)), ("weight.absmax", "F32", (-(-n * k // _NF4_BLOCK),))


def _int8(n: int, k: int) -> tuple[_Part, ...]:
    return ("weight", "I8", (n, k)), ("weight.SCB", "F32", (n,))


def _fp8(n: int, k: int) -> tuple[_Part, ...]:
    return ("weight", "F8_E4M3", (n, k)), ("weight_scale", "F32", (1,))


@dataclass(frozen=True, slots=True)
class _Scheme:
    """What the engine keeps of a matrix of N outputs and K inputs; bits of a code; kernels; the nearest rounding that the fit knows."""

    parts: Callable[[int, int], tuple[_Part, ...]]
    bits: float
    kernel: KernelFamily
    rounding: Rounding


#: nf4 behaves like 4-bit round to nearest with groups of 64.
_SCHEMES: Mapping[str, _Scheme] = {
    "nf4": _Scheme(_nf4, 4, KernelFamily.BNB, Rounding("rtn", 4, 64)),
    "int8-bnb": _Scheme(_int8, 8, KernelFamily.BNB, Rounding("w8a8", 0)),
    "fp8-online": _Scheme(_fp8, 8, KernelFamily.FP8, Rounding("fp8", 0)),
}


@dataclass(frozen=True, slots=True)
class Resident(Format):
    """One matrix as an engine holds it after quantizing it itself; never in a checkpoint."""

    kind: ClassVar[str] = "resident"
    examples: ClassVar[tuple[str, ...]] = tuple(_SCHEMES)
    decodes: ClassVar[bool] = False
    carries_kv_scales: ClassVar[bool] = True
    scheme: str

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Read `nf4`, `int8-bnb`, `fp8-online`."""
        return cls(name) if name in _SCHEMES else None

    @property
    def label(self) -> str:
        """The name users write: `nf4`, `int8-bnb`, `fp8-online`."""
        return self.scheme

    @property
    def engine_name(self) -> str:
        """The scheme."""
        return self.scheme

    @property
    def bits(self) -> float:
        """The scheme's."""
        return _SCHEMES[self.scheme].bits

    @property
    def kernel(self) -> KernelFamily:
        """The scheme's."""
        return _SCHEMES[self.scheme].kernel

    def rounding(self, method: str) -> Rounding:
        """Return the scheme's: no engine calibrates while loading."""
        return _SCHEMES[self.scheme].rounding

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Refuse no shape."""
        return None

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return what the engine keeps in memory."""
        return tuple(
            Tensor(f"{name}.{suffix}", dtype, shape)
            for suffix, dtype, shape in _SCHEMES[self.scheme].parts(out_features, in_features)
        )

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Refuse, for nothing is written: the engine does it while loading."""
        raise TightfitError(f"{self.scheme} is made by the engine while loading", remedy="store the model dense")

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Refuse, for nothing is stored: the engine does it while loading."""
        raise TightfitError(f"{self.scheme} is made by the engine while loading", remedy="read the dense model")


def resident(scheme: str) -> Resident:
    """Return the format of a load-time scheme. Raises InputError with the nearest names for one that is not known."""
    if scheme not in _SCHEMES:
        raise unknown_name("load-time scheme", scheme, _SCHEMES, remedy=f"one of {', '.join(_SCHEMES)}")
    return Resident(scheme)
