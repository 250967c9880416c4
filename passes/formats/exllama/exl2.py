"""EXL2 matrices (ExLlamaV2): groups of input rows of 2, 3, 4, 5, 6 or 8 bits, most important inputs first.

Tensors of a matrix `W[in, out]` (K inputs, N outputs padded to 32, G groups): `q_weight` I32 `[Σ rows·bits/32, N]`, each group a dense
little-endian stream down every column; `q_scale` I32 `[G, N/8]`, 4-bit scale indices; `q_scale_max` F16 `[G]`; `q_groups` I16 `[2G]`,
(bits, first q_weight row) of each group; `q_invperm` I32 `[K]`, the position of each original input.
w = fp16((q − 2^(b−1)) · fp16((s + 1)² · fp16(q_scale_max/256))). Established from ExLlamaV2 0.3.2's reader, whose kernels decode
what this writes bit for bit (no written specification exists).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Protocol

from passes.errors import Reason, TightfitError
from passes.formats import bitstream
from passes.formats.format import Format, KernelFamily, Quantized
from passes.formats.tensor import Tensor
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

#: Widths that the kernels know.
WIDTHS = (2, 3, 4, 5, 6, 8)
#: Outputs are padded to, and groups are made of, multiples of this.
UNIT = 32
_MAX_INPUTS, _MAX_WORD_ROWS = 65535, 32767

#: Codes that are packed at once where groups are no larger, an integer of 64 bits each: what a processor's cache holds; what makes a
#: card's launches few.
_CACHED_CODES, _PACKED_CODES = 1 << 18, 1 << 22

#: (share of the inputs, bits, group size), widths descending.
Share = tuple[float, int, int]


class Exl2Matrix(Protocol):
    """What the adaptive quantizer hands over (`passes.algorithms.exl2.Exl2Codes`): rows are inputs in stored order.

    `codes` unsigned `[K, N]`; `scale_index` `[G, N]`, 1 … 16; `scale_max` fp16 `[G]`; `permutation` `[K]`, the original input at
    each position; `groups` (bits, rows).
    """

    @property
    def codes(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def scale_index(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def scale_max(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def permutation(self) -> torch.Tensor: ...  # noqa: D102
    @property
    def groups(self) -> tuple[tuple[int, int], ...]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Exl2(Format):
    """One EXL2 matrix whose groups follow from shares of its inputs; `(1.0, 4, 128)` alone is plain 4 bit in groups of 128."""

    kind: ClassVar[str] = "exl2"
    quant_method: ClassVar[str] = "exl2"
    splits_fused: ClassVar[bool] = True
    shares: tuple[Share, ...] = ((1.0, 4, 128),)

    @property
    def label(self) -> str:
        """`exl2-4b/g128`, `exl2-0.1x5b/g64+0.9x4b/g64`."""
        terms = (f"{'' if share == 1 else f'{share:g}x'}{bits}b/g{size}" for share, bits, size in self.shares)
        return "exl2-" + "+".join(terms)

    @property
    def bits(self) -> float:
        """The average over the inputs."""
        return math.fsum(share * bits for share, bits, _ in self.shares)

    @property
    def kernel(self) -> KernelFamily:
        """ExLlama's."""
        return KernelFamily.EXL

    def layout(self, in_features: int) -> tuple[tuple[int, int], ...]:
        """Return (bits, rows) of every group for K inputs, as ExLlamaV2 lays a parameter set out."""
        return _layout(self.shares, in_features)

    def stored_rows(self, out_features: int) -> int:
        """Return outputs with padding: the next multiple of 32, as the loader expects it."""
        return -(-out_features // UNIT) * UNIT

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Require a K that is a multiple of 32 and at most 65535, known widths in descending order, groups of multiples of 32."""
        widths = [bits for _, bits, _ in self.shares]
        if not set(widths) <= set(WIDTHS) or widths != sorted(widths, reverse=True):
            return Reason("exl2_widths", f"EXL2 knows the widths 2, 3, 4, 5, 6, 8, widest first, not {widths}")
        if any(size <= 0 or size % UNIT for _, _, size in self.shares):
            return Reason("exl2_group_size", "EXL2 groups are multiples of 32 inputs", "32, 64 or 128")
        if in_features % UNIT:
            return Reason(
                "exl2_needs_multiples_of_32", f"{in_features} inputs are no multiple of 32", "leave the block dense"
            )
        if in_features > _MAX_INPUTS or _word_rows(self.shares, in_features) > _MAX_WORD_ROWS:
            return Reason("exl2_too_many_inputs", f"{in_features} inputs exceed EXL2's 16-bit indices", "fewer bits")
        return None

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return the five tensors of a matrix."""
        groups, columns = self.layout(in_features), self.stored_rows(out_features)
        return (
            Tensor(f"{name}.q_weight", "I32", (_word_rows(self.shares, in_features), columns)),
            Tensor(f"{name}.q_scale", "I32", (len(groups), columns // 8)),
            Tensor(f"{name}.q_scale_max", "F16", (len(groups),)),
            Tensor(f"{name}.q_groups", "I16", (2 * len(groups),)),
            Tensor(f"{name}.q_invperm", "I32", (in_features,)),
        )

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Refuse, for EXL2's scales are pairs of indices and maxima: only its own quantizer's result can be stored (`encode_matrix`)."""
        raise TightfitError("EXL2 stores what its own quantizer makes", remedy="choose the method exl2")

    def encode_matrix(self, name: str, matrix: Exl2Matrix) -> dict[str, torch.Tensor]:
        """Return the stored tensors; missing columns up to the padded width decode to zero."""
        import torch

        rows, columns = matrix.codes.shape
        if matrix.groups != self.layout(rows):
            raise TightfitError(f"{name}: the groups differ from those of {self.label}", remedy="quantize it again")
        pad = self.stored_rows(columns) - columns
        together = _CACHED_CODES if matrix.codes.device.type == "cpu" else _PACKED_CODES
        words: list[torch.Tensor] = []
        row = 0
        for bits, length in _runs(matrix.groups, together // columns):
            part = torch.nn.functional.pad(matrix.codes[row : row + length].int(), (0, pad), value=1 << (bits - 1))
            words.append(bitstream.pack(part.T.contiguous(), bits).T)
            row += length
        starts: list[int] = []
        first = 0
        for bits, length in matrix.groups:
            starts += [bits, first]
            first += bits * length // UNIT
        index = torch.nn.functional.pad(matrix.scale_index.to(torch.int64) - 1, (0, pad))
        return {
            f"{name}.q_weight": torch.cat(words).contiguous(),
            f"{name}.q_scale": _pack_nibbles(index),
            f"{name}.q_scale_max": matrix.scale_max.half(),
            f"{name}.q_groups": torch.tensor(starts, dtype=torch.int16),
            f"{name}.q_invperm": torch.argsort(matrix.permutation).to(torch.int32),
        }

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Return the weight `[N padded, K]`, inputs in their original order."""
        import torch

        words = tensors[f"{name}.q_weight"]
        index = _unpack_nibbles(tensors[f"{name}.q_scale"])
        top = (tensors[f"{name}.q_scale_max"].float() / 256).half().float()
        scale = ((index + 1).float() ** 2 * top.unsqueeze(1)).half().float()
        starts = tensors[f"{name}.q_groups"].tolist()
        rows = []
        for group, (bits, start) in enumerate(zip(starts[::2], starts[1::2], strict=True)):
            end = starts[2 * group + 3] if group + 1 < len(scale) else len(words)
            codes = bitstream.unpack(words[start:end].T.contiguous(), bits).T
            rows.append(((codes - (1 << (bits - 1))).float() * scale[group]).half())
        return torch.cat(rows)[tensors[f"{name}.q_invperm"].long()].T.to(dtype).contiguous()


def reordered_outputs(name: str, stored: Mapping[str, torch.Tensor], order: torch.Tensor) -> dict[str, torch.Tensor]:
    """Renumber the outputs of a stored matrix: output j is what `order[j]` was. Lossless: outputs share nothing but `scale_max`."""
    index = _unpack_nibbles(stored[f"{name}.q_scale"])
    out = {key: stored[key] for key in stored if key.startswith(f"{name}.")}
    out[f"{name}.q_weight"] = stored[f"{name}.q_weight"][:, order].contiguous()
    out[f"{name}.q_scale"] = _pack_nibbles(index[:, order])
    if f"{name}.bias" in stored:
        out[f"{name}.bias"] = stored[f"{name}.bias"][order].contiguous()
    return out


def inputs_in_place(name: str, stored: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return a stored matrix whose inputs come in the order in which they are stored, and that order: input j is what `order[j]` was."""
    import torch

    order = torch.argsort(stored[f"{name}.q_invperm"].long())
    return {f"{name}.q_invperm": torch.arange(len(order), dtype=torch.int32)}, order


def _runs(groups: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Groups of one width that follow each other as one of at most so many rows: a group's stream ends with a word, so they join."""
    out: list[tuple[int, int]] = []
    for bits, rows in groups:
        if out and out[-1][0] == bits and out[-1][1] + rows <= most:
            out[-1] = (bits, out[-1][1] + rows)
        else:
            out.append((bits, rows))
    return out


def _pack_nibbles(index: torch.Tensor) -> torch.Tensor:
    import torch

    parts = index.reshape(index.shape[0], -1, 8)
    words = torch.zeros(parts.shape[:2], dtype=torch.int64, device=index.device)
    for nibble in range(8):
        words |= parts[:, :, nibble] << (4 * nibble)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `_pack_nibbles`: int64 `[G, N]`."""
    import torch

    words = packed.to(torch.int64)
    return torch.stack([(words >> (4 * n)) & 15 for n in range(8)], dim=-1).reshape(len(packed), -1)


@lru_cache(maxsize=1 << 12)
def _word_rows(shares: tuple[Share, ...], in_features: int) -> int:
    groups = Counter(_layout(shares, in_features))
    return sum(count * (bits * rows // UNIT) for (bits, rows), count in groups.items())


@lru_cache(maxsize=1 << 12)
def _layout(shares: tuple[Share, ...], in_features: int) -> tuple[tuple[int, int], ...]:
    """n = ceil(min(K·p, rows left) / group size) groups of each width, the very last one clipped; float64 as in the converter."""
    groups: list[tuple[int, int]] = []
    left = in_features
    for share, bits, size in shares:
        count = max(0, math.ceil(min(in_features * share, left) / size))
        groups += [(bits, size)] * count
        left -= count * size
    bits, rows = groups[-1]
    groups[-1] = (bits, rows + left)
    return tuple(groups)
