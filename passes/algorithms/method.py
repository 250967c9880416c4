"""The algorithms as the walk calls them: the matrices that read one input, its Hessian, the formats to store them in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from passes.algorithms.damping import DAMPING
from passes.algorithms.gptq import GptqOptions, gptq, sparse
from passes.algorithms.rtn import round_blocks_to_nearest, round_to_nearest
from passes.algorithms.scale_search import ScaleSearch
from passes.algorithms.smoothing import AwqSearch, Smoothing, SmoothQuant
from passes.algorithms.sparsity import Mask
from passes.blocks.matrices import packed
from passes.errors import InputError
from passes.formats.exllama.exl2 import Exl2
from passes.formats.format import Format, Quantized
from passes.ir.model import Linear
from passes.record import dataclass

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Matrix:
    """One matrix to be stored: its full name, its description with the format to be, its weight `[N, K]` in fp32.

    `input_peak`: the largest magnitude of its inputs in calibration, where its format stores a scale of them.
    """

    name: str
    linear: Linear
    weight: torch.Tensor
    input_peak: float | None = None


@dataclass(frozen=True)
class Stored:
    """A matrix as it goes to disk, the weight that an engine computes from that, and the algorithm's own loss.

    `quantized`: codes and scales, None where the format has none.
    """

    tensors: dict[str, torch.Tensor]
    decoded: torch.Tensor
    loss: float
    quantized: Quantized | None = None


class Method(Protocol):
    """An algorithm. `needs_hessian`: whether it looks at calibration inputs."""

    @property
    def needs_hessian(self) -> bool:
        """Whether calibration inputs are looked at."""
        ...

    @property
    def smoothing(self) -> Smoothing | None:
        """What scales a group's inputs are stored with; None where weights are taken as they are."""
        ...

    @property
    def mask(self) -> Mask | None:
        """Which weights become zeros; None where all stay."""
        ...

    def touches(self, linear: Linear) -> bool:
        """Return whether a matrix, in the storage it is to have, is worked on."""
        ...

    def store(self, group: Sequence[Matrix], hessian: torch.Tensor | None, dtype: torch.dtype) -> list[Stored]:
        """Store matrices that read the same input with Hessian `[K, K]`; decoded weights in `dtype`."""
        ...


class _Storing:
    """What most methods answer: matrices stored in other than plain numbers are worked on, as they are."""

    needs_hessian: ClassVar[bool] = False

    @property
    def smoothing(self) -> Smoothing | None:
        """None."""
        return None

    @property
    def mask(self) -> Mask | None:
        """None: only GPTQ's loop chooses zeros."""
        return None

    def touches(self, linear: Linear) -> bool:
        """Return whether its storage is no plain numbers."""
        return packed(linear)


@dataclass(frozen=True)
class RoundToNearest(_Storing):
    """No calibration: every weight to its nearest level."""

    def store(self, group: Sequence[Matrix], hessian: torch.Tensor | None, dtype: torch.dtype) -> list[Stored]:
        """Store each matrix; the loss is 0."""
        return _store_on_grid(group, dtype, _nearest)


@dataclass(frozen=True)
class Gptq(_Storing):
    """GPTQ on integers and 4-bit floats; on e4m3, whose spacing follows the weights, round to nearest.

    `mask`: zeros chosen in the same pass over the columns.
    """

    options: GptqOptions
    mask: Mask | None = None
    smooth: Smoothing | None = None
    needs_hessian: ClassVar[bool] = True

    @property
    def smoothing(self) -> Smoothing | None:
        """SmoothQuant, where asked for."""
        return self.smooth

    def touches(self, linear: Linear) -> bool:
        """Tell whether it works on a matrix: with a mask, on every matrix that recipes quantize."""
        return packed(linear) or (self.mask is not None and linear.quantizable)

    def store(self, group: Sequence[Matrix], hessian: torch.Tensor | None, dtype: torch.dtype) -> list[Stored]:
        """Store the group; a matrix that no calibration token reached is rounded to nearest."""
        mask = self.mask if all(matrix.linear.quantizable for matrix in group) else None

        def codes(weight: torch.Tensor, form: Format, scale: torch.dtype, where: str) -> tuple[Quantized, float]:
            if hessian is not None and form.grid is not None and form.grid.kind != "e4m3":
                order = "full" if form.act_order else self.options.order
                options = replace(self.options, order=order, mask=mask)
                return gptq(weight, hessian, form.grid, scale, options, where)
            loss = 0.0
            if mask is not None:
                weight, loss = _sparse(weight, hessian, self.options, where, mask)
            if form.grid is None:
                return Quantized(weight.to(scale), weight.new_ones(len(weight), 1)), loss
            return _nearest(weight, form, scale, where)[0], loss

        return _store_on_grid(group, dtype, codes)


@dataclass(frozen=True)
class Awq(_Storing):
    """AWQ: inputs scaled so that what matters is rounded well, clipping searched, every weight to its nearest level."""

    search: AwqSearch
    clipping: ScaleSearch
    needs_hessian: ClassVar[bool] = True

    @property
    def smoothing(self) -> Smoothing | None:
        """The search for the scales."""
        return self.search

    def store(self, group: Sequence[Matrix], hessian: torch.Tensor | None, dtype: torch.dtype) -> list[Stored]:
        """Store the group; clipping is searched under the Hessian's diagonal."""

        def codes(weight: torch.Tensor, form: Format, scale: torch.dtype, where: str) -> tuple[Quantized, float]:
            if hessian is None or form.grid is None or form.grid.kind != "int":
                return _nearest(weight, form, scale, where)
            return round_to_nearest(weight, form.grid, scale, self.clipping, hessian.diagonal()), 0.0

        return _store_on_grid(group, dtype, codes)


@dataclass(frozen=True)
class AdaptiveExl2(_Storing):
    """EXL2's own quantizer (`passes.algorithms.exl2`)."""

    needs_hessian: ClassVar[bool] = True

    def store(self, group: Sequence[Matrix], hessian: torch.Tensor | None, dtype: torch.dtype) -> list[Stored]:
        """Store the group; without calibration tokens every input counts the same."""
        import torch

        from passes.algorithms.exl2 import factorize, quantize_parts

        first = group[0]
        if hessian is None:
            hessian = torch.eye(first.weight.shape[1], device=first.weight.device)
        factor = factorize(hessian, first.name)
        forms = [matrix.linear.storage for matrix in group if isinstance(matrix.linear.storage, Exl2)]
        parts = [
            (matrix.weight, form.layout(matrix.weight.shape[1])) for matrix, form in zip(group, forms, strict=True)
        ]
        out = []
        for matrix, form, (codes, decoded) in zip(group, forms, quantize_parts(parts, factor), strict=True):
            error = (decoded - matrix.weight).square() @ hessian.diagonal()
            out.append(Stored(form.encode_matrix(matrix.name, codes), decoded.to(dtype), float(error.sum())))
        return out


#: GPTQ as it is run by default. Chosen on the de-gridded twin of SmolLM2 only (benchmarks/quantize.py, docs/quantization.md).
GPTQ_DEFAULT = GptqOptions(order="static", damping=DAMPING, search=ScaleSearch(steps=20, shrink=0.7))

_METHODS: Mapping[str, Callable[[GptqOptions], Method]] = {
    "rtn": lambda options: RoundToNearest(),
    "gptq": Gptq,
    "smoothquant": lambda options: Gptq(options, smooth=SmoothQuant()),
    "awq": lambda options: Awq(AwqSearch(), ScaleSearch(steps=20, shrink=0.5)),
    "exl2": lambda options: AdaptiveExl2(),
}


def method(name: str, mask: Mask | None = None, damping: float = GPTQ_DEFAULT.damping) -> Method:
    """Return the algorithm of a name, with a sparsity pass's zeros and GPTQ's damping.

    Zeros are chosen in GPTQ's loop; which rounding goes with them is the pass's matter (`Sparsify.conflict`). Raises
    InputError for a method that the walk does not run.
    """
    options = replace(GPTQ_DEFAULT, damping=damping)
    if mask is not None:
        return Gptq(options, mask)
    if name not in _METHODS:
        raise InputError(f"the method {name!r} cannot be executed here", remedy=f"choose {', '.join(_METHODS)}")
    return _METHODS[name](options)


def _sparse(
    weight: torch.Tensor, hessian: torch.Tensor | None, options: GptqOptions, where: str, mask: Mask
) -> tuple[torch.Tensor, float]:
    """Zeros without rounding; by magnitude where no token was seen."""
    if hessian is None:
        return weight * mask.wanda(weight, None), 0.0
    return sparse(weight, hessian, replace(options, mask=mask), where)


def _nearest(weight: torch.Tensor, form: Format, scale: torch.dtype, where: str) -> tuple[Quantized, float]:
    assert form.grid is not None, where
    if form.block is not None:
        return round_blocks_to_nearest(weight, form.block, form.grid, scale), 0.0
    return round_to_nearest(weight, form.grid, scale), 0.0


def _store_on_grid(
    group: Sequence[Matrix],
    dtype: torch.dtype,
    codes: Callable[[torch.Tensor, Format, torch.dtype, str], tuple[Quantized, float]],
) -> list[Stored]:
    """Quantize the matrices of a group that can be stacked as one tall matrix, and store each part."""
    import torch

    done: dict[str, Stored] = {}
    for stack in _stackable(group):
        form = stack[0].linear.storage
        where = "/".join(matrix.name for matrix in stack)
        weight = torch.cat([matrix.weight for matrix in stack])
        quantized, loss = codes(weight, form, scale_dtype(stack[0].linear), where)
        parts = _split_rows(quantized, [matrix.weight.shape[0] for matrix in stack])
        for matrix, part in zip(stack, parts, strict=True):
            whole = replace(part, input_peak=matrix.input_peak)
            tensors = form.encode(matrix.name, whole)
            done[matrix.name] = Stored(tensors, form.decode(matrix.name, tensors, dtype), loss / len(stack), whole)
    return [done[matrix.name] for matrix in group]


def _stackable(group: Sequence[Matrix]) -> list[list[Matrix]]:
    """Matrices that can be quantized as one tall matrix: same format, no scale that spans rows."""
    out: dict[object, list[Matrix]] = {}
    for matrix in group:
        form = matrix.linear.storage
        alone = (form.grid is not None and form.grid.group_size == 0) or form.block is not None
        out.setdefault((matrix.name if alone else "", form), []).append(matrix)
    return list(out.values())


def _split_rows(quantized: Quantized, rows: Sequence[int]) -> list[Quantized]:
    """A tall matrix's codes, scales and zero points cut back into its matrices."""
    import torch

    if len(rows) == 1:
        return [quantized]
    codes, scales = torch.split(quantized.codes, list(rows)), torch.split(quantized.scale, list(rows))
    zeros = [None] * len(rows) if quantized.zero_point is None else list(torch.split(quantized.zero_point, list(rows)))
    return [
        replace(quantized, codes=code, scale=scale, zero_point=zero)
        for code, scale, zero in zip(codes, scales, zeros, strict=True)
    ]


def scale_dtype(linear: Linear) -> torch.dtype:
    """Return the dtype in which a format stores the scales of a matrix; of plain numbers, their own. U8 holds exponents of two."""
    import torch

    dtypes = {
        "BF16": torch.bfloat16, "F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn, "U8": torch.float8_e8m0fnu,
    }  # fmt: skip
    for tensor in linear.storage.tensors("x", linear.out_features, linear.in_features):
        if tensor.name.endswith(("scale", "scales")) or not linear.storage.is_quantized:
            return dtypes.get(tensor.dtype, torch.float32)
    return torch.float32
