"""A config group of a compressed-tensors checkpoint: what it says of its matrices, and the contract of the formats that it may mean."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Self

from passes.formats.format import Format
from passes.formats.tensor import Tensor
from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class ConfigGroup:
    """A config group of a checkpoint. `form`: the format's name, where it gives one; `type` (`int`, `float`) and `bits` of the weights.

    `group_size`: -1 = a scale a row, 0 = one a matrix; `block`: rows and inputs of block scales. `inputs`: the type that activations are
    quantized to (`int8`, `fp8`, `fp4`), "" where they are not; `static`: all by one stored scale.
    """

    form: str
    type: str
    bits: int
    group_size: int
    symmetric: bool
    block: tuple[int, int] | None
    inputs: str
    static: bool


class CompressedTensors(Format):
    """A format of compressed-tensors: a checkpoint may mix them, each in a config group of its own."""

    quant_method: ClassVar[str] = "compressed-tensors"
    carries_kv_scales: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def described_by(cls, group: ConfigGroup, dtype: str) -> Self | None:
        """Return the format that a config group means, its scales in `dtype`; None where it means another one."""

    @abstractmethod
    def scheme(self) -> dict[str, Any]:
        """Return the `weights` and activation arguments of a config group."""


def input_scale(name: str, *, static: bool) -> tuple[Tensor, ...]:
    """Return the tensor of the one scale by which a matrix's inputs are quantized; none where each token has its own."""
    return (Tensor(f"{name}.input_scale", "F32", (1,)),) if static else ()


def strategy(group_size: int) -> str:
    """Name how many weights share a scale: an output channel (-1), the matrix (0), or a group."""
    return {-1: "channel", 0: "tensor"}.get(group_size, "group")


def arguments(
    bits: int, kind: str, symmetric: bool, group_size: int, *, activations: str | None = None
) -> dict[str, Any]:
    """Return the arguments of a config group. `activations`: how finely they are quantized (`token`: dynamic, `tensor`: static), or not."""
    common = {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "actorder": None,
        "block_structure": None,
        "observer_kwargs": {},
    }
    weights = common | {
        "strategy": strategy(group_size),
        "group_size": group_size if group_size > 0 else None,
        "dynamic": False,
        "observer": "minmax",
    }
    dynamic = activations == "token"
    inputs = activations and common | {
        "strategy": activations, "group_size": None, "dynamic": dynamic, "observer": None if dynamic else "minmax",
    }  # fmt: skip
    return {"weights": weights, "input_activations": inputs, "output_activations": None}
