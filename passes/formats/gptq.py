"""GPTQ checkpoints, versions 1 and 2 (AutoGPTQ, GPTQModel): `qweight`, `qzeros`, `scales`, `g_idx`.

Layout (verified against AutoGPTQ's packer for 2, 3, 4 and 8 bits): `qweight` I32 `[K·b/32, N]`, a dense little-endian stream
down each column, rows in original order; `qzeros` I32 `[G, N·b/32]`, the same stream along each row; `scales` F16 `[G, N]`;
`g_idx` I32 `[K]`, the group of each input. w = (q − z)·scale, q and z unsigned. Version 1 stores z − 1, version 2 stores z.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Self

from passes.errors import Reason
from passes.formats import bitstream
from passes.formats.format import Format, Grid, KernelFamily, Quantized
from passes.formats.tensor import Tensor
from passes.record import dataclass

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Gptq(Format):
    """One GPTQ matrix. `group_size` −1 = the whole row; `desc_act`: groups follow the activation order (`g_idx` arbitrary).

    `indexed`: `g_idx` is stored; AutoRound leaves it out, for its groups follow one another.
    """

    kind: ClassVar[str] = "gptq"
    usual_method: ClassVar[str] = "gptq"
    examples: ClassVar[tuple[str, ...]] = ("gptq-4-g128", "gptq-4-g128-asym", "gptq-4-g128-act", "gptq-8-g128")
    quant_method: ClassVar[str] = "gptq"
    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    desc_act: bool = False
    version: int = 1
    indexed: bool = True

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Read `gptq-4-g128`, `gptq-3-channel`, with `-asym`, `-act` and `-v2` after them in any order."""
        match = re.fullmatch(rf"gptq-([2348])-({GROUP})((?:-asym|-act|-v2)*)", name)
        if match is None:
            return None
        marks = match[3].split("-")
        version = 2 if "v2" in marks else 1
        return cls(int(match[1]), group_size(match[2]), "asym" not in marks, "act" in marks, version)

    def stored_under(self, names: Iterable[str]) -> Gptq:
        """Return it with `g_idx` or without."""
        return replace(self, indexed=any(name.endswith(".g_idx") for name in names))

    @property
    def label(self) -> str:
        """`gptq-4-g128`; `channel`: a row is one group; `-asym`: zero points; `-act`: `desc_act`; `-v2`: they are stored as they are."""
        group = "channel" if self.group_size < 0 else f"g{self.group_size}"
        marks = (("-asym", not self.symmetric), ("-act", self.desc_act), ("-v2", self.version == 2))
        return f"gptq-{self.bits}-{group}" + "".join(mark for mark, there in marks if there)

    @property
    def grid(self) -> Grid:
        """Integers of `bits`. Version 1 has no zero point of 0: readers add 1 to what is stored, with or without a carry."""
        return Grid(self.bits, self.group_size, self.symmetric, least_zero=1 if self.version == 1 else 0)

    @property
    def act_order(self) -> bool:
        """As `desc_act` says."""
        return self.desc_act

    @property
    def zero_points(self) -> bool:
        """As `symmetric` says."""
        return not self.symmetric

    @property
    def kernel(self) -> KernelFamily:
        """GPTQ's."""
        return KernelFamily.GPTQ

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Require K and N to be multiples of 32, K of the group size."""
        if self.bits not in (2, 3, 4, 8):
            return Reason("gptq_bits", f"GPTQ stores 2, 3, 4 or 8 bits, not {self.bits}", "choose 4 or 8 bits")
        if in_features % 32 or out_features % 32:
            return Reason(
                "gptq_needs_multiples_of_32",
                f"a {out_features} × {in_features} matrix is not a multiple of 32 each way",
            )
        return group_size_reason(self.group_size, in_features)

    def groups(self, in_features: int) -> int:
        """Return the groups of a row."""
        return 1 if self.group_size < 0 else in_features // self.group_size

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return the tensors of a matrix."""
        groups, words = self.groups(in_features), out_features * self.bits // 32
        index = (Tensor(f"{name}.g_idx", "I32", (in_features,)),) if self.indexed else ()
        return (
            Tensor(f"{name}.qweight", "I32", (in_features * self.bits // 32, out_features)),
            Tensor(f"{name}.qzeros", "I32", (groups, words)),
            Tensor(f"{name}.scales", "F16", (groups, out_features)),
            *index,
        )

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Pack codes, zero points and scales; a symmetric grid's zero point is 2^(b−1)."""
        import torch

        codes, half = quantized.codes.to(torch.int32), 1 << (self.bits - 1)
        columns = codes.shape[1]
        scale = quantized.scale
        if quantized.zero_point is None:
            codes = codes + half
            zero = torch.full_like(scale, half, dtype=torch.int32)
        else:
            zero = quantized.zero_point.to(torch.int32)
            assert self.grid.least_zero <= int(zero.min()), f"{name}: version 1 cannot say a zero point of 0"
        stored_zero = zero - 1 if self.version == 1 else zero
        group_of_input = quantized.group_of_input
        if group_of_input is None:
            size = columns if self.group_size < 0 else self.group_size
            group_of_input = torch.arange(columns, device=codes.device) // size
        return {
            f"{name}.qweight": bitstream.pack(codes, self.bits).T.contiguous(),
            f"{name}.qzeros": bitstream.pack(stored_zero.T & ((1 << self.bits) - 1), self.bits),
            f"{name}.scales": scale.T.half().contiguous(),
            **({f"{name}.g_idx": group_of_input.to(torch.int32)} if self.indexed else {}),
        }

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Return (q − z)·scale."""
        import torch

        codes = bitstream.unpack(tensors[f"{name}.qweight"].T.contiguous(), self.bits)
        zero = bitstream.unpack(tensors[f"{name}.qzeros"], self.bits) + (1 if self.version == 1 else 0)
        size = codes.shape[1] if self.group_size < 0 else self.group_size
        group = (
            tensors[f"{name}.g_idx"].long()
            if self.indexed
            else torch.arange(codes.shape[1], device=codes.device) // size
        )
        scale = tensors[f"{name}.scales"].float()
        return ((codes - zero.T[:, group]).float() * scale.T[:, group]).to(dtype)


#: The pattern of a group in names: `g64`, `channel`.
GROUP = r"g[1-9]\d*|channel"


def group_size(name: str) -> int:
    """Return the inputs of a group from its name (`GROUP`): -1 for `channel`."""
    return -1 if name == "channel" else int(name[1:])


def group_size_reason(group_size: int, in_features: int) -> Reason | None:
    """Say why a group size cannot divide a row; names the nearest ones that do."""
    if group_size <= 0 or in_features % group_size == 0:
        return None
    legal = [size for size in (32, 64, 128, 256) if in_features % size == 0]
    remedy = f"group size {' or '.join(map(str, legal))} divides it" if legal else "only a scale per channel is legal"
    return Reason(
        f"group_size_{group_size}_does_not_divide_{in_features}",
        f"group size {group_size} does not divide the {in_features} inputs",
        remedy,
        {"group_size": group_size, "in_features": in_features, "legal": legal},
    )
