"""ExLlamaV2 0.3.2's parameter sets (`conversion/qparams.py`): the options that its measurement weighs, one row an option.

Notation: `.1x5b+.9x4b/64` = a tenth of the inputs at 5 bits, the rest at 4, groups of 64; a width may have a group size of its own
(`.05x8b/32+.95x4b/128`). An option fixes all matrices of its module together. Any other legal layout loads as well.
"""

from __future__ import annotations

from passes.formats.exllama.exl2 import Exl2, Share


def parse_shares(text: str) -> Exl2:
    """Return the format that a row's notation means."""
    terms = text.split("+")
    last_size = int(terms[-1].split("/")[1])
    shares: list[Share] = []
    for term in terms:
        body, _, size = term.partition("/")
        share, _, bits = body.rpartition("x")
        shares.append((float(share or 1), int(bits.removesuffix("b")), int(size or last_size)))
    return Exl2(tuple(shares))


def _rows(table: str) -> tuple[tuple[Exl2, ...], ...]:
    return tuple(tuple(parse_shares(cell) for cell in line.split()) for line in table.strip().splitlines())


#: q and k, v, o.
ATTENTION = _rows("""
.05x3b+.95x2b/64  .05x3b+.95x2b/64   .05x3b+.95x2b/64
.1x3b+.9x2b/64    .25x3b+.75x2b/64   .1x3b+.9x2b/64
.1x3b+.9x2b/64    .1x4b+.9x3b/128    .1x3b+.9x2b/64
.1x3b+.9x2b/64    .1x4b+.9x3b/128    .1x4b+.9x3b/128
.1x4b+.9x3b/128   .1x4b+.9x3b/128    .1x4b+.9x3b/128
.1x4b+.9x3b/128   .1x4b+.9x3b/64     .1x4b+.9x3b/128
4b/128            4b/128             4b/128
4b/128            4b/64              4b/128
4b/64             4b/32              4b/64
4b/32             4b/32              4b/32
.1x5b+.9x4b/128   .1x5b+.9x4b/64     .1x5b+.9x4b/128
.1x5b+.9x4b/64    .1x5b+.9x4b/32     .1x5b+.9x4b/64
.1x5b+.9x4b/64    5b/64              .1x5b+.9x4b/64
.1x5b+.9x4b/32    5b/32              .1x5b+.9x4b/32
.1x6b+.9x5b/128   6b/128             .1x6b+.9x5b/128
.1x6b+.9x5b/32    6b/32              .1x6b+.9x5b/32
6b/128            6b/128             6b/128
6b/32             8b/32              6b/32
8b/128            8b/128             8b/128
""")

#: gate, up, down.
MLP = _rows("""
.05x3b+.95x2b/64  .05x3b+.95x2b/64   .05x6b/32+.2x3b/64+.75x2b/64
.1x3b+.9x2b/64    .25x3b+.75x2b/64   .05x6b/32+.2x3b/64+.75x2b/64
.1x3b+.9x2b/64    .3x3b+.7x2b/64     .05x5b+.95x3b/32
.1x3b+.9x2b/64    .3x3b+.7x2b/64     .05x5b+.95x4b/32
.1x4b+.9x3b/128   .25x4b+.75x3b/128  .05x8b/32+.1x4b/128+.85x3b/128
.1x4b+.9x3b/32    .25x4b+.75x3b/32   .05x8b+.1x4b+.85x3b/32
.1x4b+.9x3b/32    .25x4b+.75x3b/32   .05x8b/32+.95x4b/128
4b/128            4b/32              .05x8b/32+.95x4b/128
4b/32             4b/32              .05x8b+.95x4b/32
.1x5b+.9x4b/128   .25x5b+.75x4b/128  .05x8b/32+.1x5b/128+.85x4b/128
.1x5b+.9x4b/32    .25x5b+.75x4b/32   .05x8b+.1x5b+.85x4b/32
.1x6b+.9x5b/128   .25x6b+.75x5b/128  .05x8b/32+.1x6b/128+.85x5b/128
.1x6b+.9x5b/32    .25x6b+.75x5b/32   .05x8b+.1x6b+.85x5b/32
6b/128            6b/128             .05x8b/32+.95x6b/128
.1x8b+.9x6b/128   .1x8b+.9x6b/128    .15x8b+.85x6b/128
.1x8b+.9x6b/128   .1x8b+.9x6b/128    8b/128
8b/128            8b/128             8b/128
""")

#: `head_bits` -> the head's layout. The converter's default is 6; its documentation recommends 6 and 8.
HEAD = {
    2: parse_shares(".3x4b+.7x2b/32"),
    3: parse_shares(".15x4b+.85x3b/32"),
    4: parse_shares(".15x6b+.85x4b/32"),
    5: parse_shares(".15x6b+.85x5b/128"),
    6: parse_shares(".15x8b+.85x6b/128"),
    8: parse_shares("8b/128"),
}
