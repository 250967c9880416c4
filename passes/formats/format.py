"""The contract of a storage format: what tensors a matrix becomes, whether it may, and how to write and read it.

A format is a frozen value (`PackQuantized(bits=4, group_size=64)`), so it can be a field of the IR, a dictionary key and a
memoisation key. Its descriptive half (`illegal`, `tensors`, `bytes`) is pure arithmetic and needs no torch; its codec half
(`encode`, `decode`) imports torch when called. Orientation is Hugging Face's: a weight is `[out_features, in_features]`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Self

from passes.errors import Reason, TightfitError
from passes.formats.tensor import Tensor
from passes.record import dataclass
from passes.registry import Registry

if TYPE_CHECKING:
    import torch


#: Largest values of float8 e4m3fn (OCP 8-bit floating point specification 1.0, table 1) and of e2m1 (OCP Microscaling 1.0, table 5).
E4M3_MAX, E2M1_MAX = 448.0, 6.0


@dataclass(frozen=True, slots=True)
class Grid:
    """The set of values an algorithm may round to, independent of how they are stored.

    `group_size`: consecutive inputs that share a scale; -1 = the whole row (per output channel), 0 = the whole matrix.
    `kind`: "int" (uniform integers), "e4m3" or "e2m1" (floats of 8 and 4 bits). Symmetric integers are signed, -2^(b-1) … 2^(b-1)-1.
    `least_zero`: the least zero point that the format can say.
    """

    bits: int
    group_size: int
    symmetric: bool = True
    kind: str = "int"
    least_zero: int = 0

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest code."""
        if self.kind != "int":
            most = E4M3_MAX if self.kind == "e4m3" else E2M1_MAX
            return -most, most
        if self.symmetric:
            return -(2.0 ** (self.bits - 1)), 2.0 ** (self.bits - 1) - 1
        return 0.0, 2.0**self.bits - 1


@dataclass(frozen=True)
class Quantized:
    """What an algorithm hands to a format, for one matrix `[N, K]` with G groups a row.

    `codes`: integers `[N, K]` (signed when symmetric, else unsigned), or the values of a float grid.
    `scale`: `[N, G]`; `zero_point`: integers `[N, G]` in the range of `codes`, None when symmetric.
    `group_of_input`: `[K]`, the group of each input when it is not `i // group_size` (activation order), else None.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor | None = None
    group_of_input: torch.Tensor | None = None
    global_scale: torch.Tensor | None = None
    """fp32 `[1]`: what two-level scales (NVFP4) are multiplied by before they are stored; `scale` is already divided by it."""
    input_peak: float | None = None
    """The largest magnitude of the matrix's inputs in calibration, where the format stores a scale of them."""

    def input_scale(self, name: str, top: float) -> torch.Tensor:
        """Return fp32 `[1]`: the scale at which the largest input seen becomes `top`. Raises TightfitError where none was looked at."""
        import torch

        if self.input_peak is None:
            raise TightfitError(f"{name}: nothing is known of its inputs", remedy="this is a defect of tightfit")
        return torch.tensor([max(self.input_peak, 1e-6) / top])


class KernelFamily(StrEnum):
    """What multiplies a stored matrix, by what the kernels have to do with it; which engine has which is the engines' matter.

    `w16`: plain numbers. `w4`, `w8`: integers of up to 5 bits, and of more, unpacked to 16 bits; `awq`: AWQ's own 4 bits. `w8a8`, `fp8`,
    `fp4`: activations are quantized too, where the card can. `mx`: 4-bit floats with powers of two as scales. `bnb`: bitsandbytes.
    `exl`: ExLlama's own. `gptq`: GPTQ's files, for which ExLlama has kernels of its own and others the ones for integers.
    """

    W16 = "w16"
    W8 = "w8"
    W4 = "w4"
    AWQ = "awq"
    W8A8 = "w8a8"
    FP8 = "fp8"
    FP4 = "fp4"
    MX = "mx"
    BNB = "bnb"
    EXL = "exl"
    GPTQ = "gptq"


def integer_kernel(bits: float) -> KernelFamily:
    """Return the family of weight-only integers of so many bits a weight."""
    return KernelFamily.W8 if bits > 5 else KernelFamily.W4


@dataclass(frozen=True, slots=True)
class Rounding:
    """How weights were rounded, as far as loss depends on it.

    `method`: `gptq`, `awq`, `rtn`, `exl2`, `fp8`, …; `bits`: bits of a code, average bits a weight for codebook formats, 0 for formats
    of one width (`fp8`, `nf4`); `group_size`: -1 = one scale a row, 0 = the format has no scale groups of integers.
    """

    method: str
    bits: float
    group_size: int = 0


class Format(ABC):
    """How one weight matrix is stored in a checkpoint, and what others ask of it: configs, engines, the fit of quality."""

    #: The name's stem in `label`, and the key of the registry.
    kind: ClassVar[str]
    #: Who reads and writes its `quantization_config` (`passes.ir.quant_config`); None where no single reader does.
    quant_method: ClassVar[str | None] = None
    #: The method by which it is made, and who makes it, where a name says neither.
    usual_method: ClassVar[str] = "rtn"
    usual_backend: ClassVar[str] = "native"
    #: Names that `named` understands, as examples for people.
    examples: ClassVar[tuple[str, ...]] = ()
    #: Whether it is other than plain numbers.
    is_quantized: ClassVar[bool] = True
    #: Whether `tensors` only bound what will be stored, because a measurement chooses the layout.
    is_bound: ClassVar[bool] = False
    #: Whether readers want fused matrices (qkv, gate_up) split into their parts.
    splits_fused: ClassVar[bool] = False
    #: Whether `decode` reads it back.
    decodes: ClassVar[bool] = True
    #: Whether loaders take scales of keys and values from a checkpoint in this format.
    carries_kv_scales: ClassVar[bool] = False

    @property
    def engine_name(self) -> str:
        """What engines' tables of readable formats call it."""
        return self.kind

    @property
    @abstractmethod
    def bits(self) -> float:
        """Bits of a code; average bits a weight where widths are mixed."""

    @property
    def group_size(self) -> int:
        """Consecutive inputs that share a scale; -1 = the whole row, 0 = no groups."""
        return 0

    @property
    def block(self) -> tuple[int, int] | None:
        """Rows and inputs of the blocks that share a scale, None where scales are not laid out so."""
        return None

    @property
    def act_order(self) -> bool:
        """Whether groups follow the order of activations instead of that of the inputs."""
        return False

    @property
    def zero_points(self) -> bool:
        """Whether its integers have zero points, which not every kernel takes."""
        return False

    @property
    def inputs(self) -> str:
        """The type that engines round a matrix's inputs to where the same weights are read beside plain inputs too; "" for plain ones."""
        return ""

    @property
    def expert_blocks(self) -> bool:
        """Whether a bank of experts is stored as blocks and scales, whose kernels pad the bank's sides (gpt-oss)."""
        return False

    @property
    @abstractmethod
    def kernel(self) -> KernelFamily:
        """What multiplies it."""

    def rounding(self, method: str) -> Rounding:
        """Return what the fit of quality sees of this format made by `method`."""
        return Rounding(method, self.bits, self.group_size)

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Return the format that a name, in small letters, stands for; None where it is not one of this format's."""
        return None

    def head(self, bits: int) -> Format | None:
        """Return the format of the output head in so many bits, where the tool that makes this one stores the head too."""
        return None

    @property
    @abstractmethod
    def label(self) -> str:
        """The name users write for it: `bf16`, `w4a16-g64`, `gptq-4-g128`."""

    @property
    def way(self) -> Hashable:
        """How it is stored, the same for matrices of every shape that are stored alike."""
        return self.label

    @abstractmethod
    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Say why a matrix of this shape cannot be stored so; None when it can."""

    @abstractmethod
    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return the stored tensors of a matrix called `name` (without `.weight`), bias excluded. Shapes must be legal."""

    def stacked(self, name: str, copies: int, out_features: int, in_features: int) -> tuple[Tensor, ...] | None:
        """Return the tensors of a whole bank of `copies` matrices stored as one; None where this format stores them apart."""
        return None

    def stored_rows(self, out_features: int) -> int:
        """Return outputs as stored, padding included; a bias is as long."""
        return out_features

    def bytes(self, out_features: int, in_features: int) -> int:
        """Return the bytes of the stored matrix, bias and header excluded. Exact."""
        return _matrix_bytes(self, out_features, in_features)

    def bits_per_weight(self, out_features: int, in_features: int) -> float:
        """Return effective bits a weight, scales and all included."""
        return 8 * self.bytes(out_features, in_features) / (out_features * in_features)

    def with_scales_in(self, dtype: str) -> Format:
        """Return the format with its scales in a dtype (safetensors' spelling), where it leaves that open."""
        return self

    def stored_under(self, names: Iterable[str]) -> Format:
        """Return the format as a matrix has it whose tensors have these names, where it leaves some out."""
        return self

    @property
    def layout_name(self) -> str:
        """What its publisher calls its layout; empty where it is nobody's own."""
        return ""

    @property
    def told(self) -> str:
        """The publisher's layout that a config says it is, where its tensors are not those of that; else empty."""
        return ""

    @property
    def grid(self) -> Grid | None:
        """What an algorithm must round to; None where the format stores plain numbers."""
        return None

    @property
    def static_inputs(self) -> bool:
        """Whether a scale of the matrix's inputs is stored with it, so that calibration must have seen them."""
        return False

    @abstractmethod
    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Return the stored tensors, by full name, of a quantized matrix. Inverse of `decode`."""

    @abstractmethod
    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Return the weight `[out_features, in_features]` exactly as an engine computes it, rounded once to `dtype`."""


#: Formats that passes can choose, by kind. Their order is that in which names and config groups are tried, and examples are shown.
FORMATS: Registry[type[Format]] = Registry(
    "format",
    {
        "dense": "passes.formats.dense:Dense",
        "float-quantized": "passes.formats.compressed_tensors.floats:FloatQuantized",
        "int-quantized": "passes.formats.compressed_tensors.integers:IntQuantized",
        "pack-quantized": "passes.formats.compressed_tensors.integers:PackQuantized",
        "gptq": "passes.formats.gptq:Gptq",
        "awq": "passes.formats.awq:Awq",
        "exl2": "passes.formats.exllama.exl2:Exl2",
        "exl2-bounded": "passes.formats.exllama.exl2_bounded:Exl2Bounded",
        "exl3": "passes.formats.exllama.exl3:Exl3",
        "resident": "passes.formats.at_load:Resident",
        "nvfp4-pack-quantized": "passes.formats.fp4:Nvfp4",
        "mxfp4-pack-quantized": "passes.formats.fp4:Mxfp4",
    },
    "tightfit.formats",
)


@lru_cache(maxsize=1 << 16)
def _matrix_bytes(form: Format, out_features: int, in_features: int) -> int:
    return sum(tensor.bytes for tensor in form.tensors("", out_features, in_features))


def formats(*, installed: bool = True) -> Iterator[type[Format]]:
    """Give our own formats in the order of the table, then, with `installed`, those of other packages, which are looked up when it comes
    to them.
    """
    own = FORMATS.names()
    yield from map(FORMATS.find, own)
    yield from (FORMATS.find(kind) for kind in FORMATS.names(installed=installed) if kind not in own)


def format_named(name: str, *, installed: bool = True) -> Format | None:
    """Return the format that a name such as `w4a16-g64` stands for, of other packages too with `installed`; None where none knows it."""
    read = (form.named(name) for form in formats(installed=installed))
    return next((form for form in read if form is not None), None)
