"""Dense little-endian bit streams in int32 words: integer i of b bits occupies stream bits [i·b, i·b + b).

Stream bit t is bit `t mod 32` of word `t div 32`; a value may straddle two words. GPTQ packs its columns so, EXL2 its groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Any width's pattern repeats after 32 values, which fill exactly `bits` words.
PERIOD = 32


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack unsigned integers `[S, n]`, n a multiple of 32, into int32 words `[S, n·bits/32]`, each row a stream."""
    import torch

    streams, count = values.shape
    periods = values.to(torch.int64).reshape(streams, count // PERIOD, PERIOD)
    words = torch.zeros(streams, count // PERIOD, bits + 1, dtype=torch.int64, device=values.device)
    for position in range(PERIOD):
        word, offset = divmod(position * bits, 32)
        shifted = periods[:, :, position] << offset
        words[:, :, word] |= shifted & 0xFFFFFFFF
        words[:, :, word + 1] |= shifted >> 32
    flat = words[:, :, :bits].reshape(streams, -1)
    return torch.where(flat >= 1 << 31, flat - (1 << 32), flat).to(torch.int32)


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack what `pack` packs: int32 words `[S, m]`, m a multiple of `bits`, to unsigned integers `[S, m·32/bits]` (int32)."""
    import torch

    streams, count = words.shape
    unsigned = (words.to(torch.int64) & 0xFFFFFFFF).reshape(streams, count // bits, bits)
    padded = torch.nn.functional.pad(unsigned, (0, 1))
    out = torch.empty(streams, count // bits, PERIOD, dtype=torch.int32, device=words.device)
    for position in range(PERIOD):
        word, offset = divmod(position * bits, 32)
        pair = padded[:, :, word] | (padded[:, :, word + 1] << 32)
        out[:, :, position] = ((pair >> offset) & ((1 << bits) - 1)).to(torch.int32)
    return out.reshape(streams, -1)
