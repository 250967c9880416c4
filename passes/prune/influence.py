"""Which blocks of a decoder cost least to drop.

Block influence 1 − cos(input, output) averaged over tokens (ShortGPT, Men et al. 2024, eq. 1), and for a run of blocks the angular
distance across it (Gromov et al. 2024, arXiv 2403.17887). The two sets that these name are tried, and the one with the lower KL
against the source on the calibration text is taken. Both are of the commonest kind of block (`passes.prune.depth.candidates`), so
where kinds alternate there may be no such run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from passes.adapters import Decoder
from passes.checkpoint import Weights
from passes.evaluate import Side, evaluate
from passes.ir.model import ModelIR
from passes.members import dense_block
from passes.prune.depth import DepthPrune, candidates, renumbered

if TYPE_CHECKING:
    import torch


class RenumberedWeights:
    """A source's weights under the names they have after blocks were dropped. Nothing is copied."""

    def __init__(self, weights: Weights, ir: ModelIR, kept: Sequence[int]) -> None:
        self._weights = weights
        stack = ir.decoder
        self._prefixes = {stack.layer_prefix(new): stack.layer_prefix(old) for new, old in enumerate(kept)}
        moved = renumbered(ir.stacks, stack, kept)
        for was, now in zip((each for each in ir.stacks if each.name != "decoder"), moved, strict=True):
            if was.prefix == stack.prefix:
                self._prefixes |= {now.layer_prefix(i): was.layer_prefix(i) for i in range(len(was.layers))}
        self._stem = stack.prefix.split("{i}")[0]

    def __contains__(self, name: str) -> bool:
        return self._old(name) in self._weights

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named tensors, looked up under their old names."""
        old = {name: self._old(name) for name in names}
        found = self._weights.read(old.values())
        return {name: found[was] for name, was in old.items()}

    def _old(self, name: str) -> str:
        if not name.startswith(self._stem):
            return name
        end = name.index(".", len(self._stem)) + 1
        return self._prefixes.get(name[:end], name[:end]) + name[end:]


#: Enough for the KL of two sets of dropped blocks, which lie far apart; a forward costs what it costs.
_JUDGED_TOKENS = 4096


def choose_blocks(
    ir: ModelIR,
    weights: Weights,
    count: int,
    tokens: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, ...]:
    """The `count` blocks whose removal costs least on `tokens` `[S, T]`; the first and the last block always stay.

    Influence sees all tokens; the two sets it names are held against each other on the last `_JUDGED_TOKENS` of them.
    """
    influence, ends = _influence(ir, weights, count, tokens, dtype, device)
    depth, free = len(ir.decoder.layers), candidates(ir.decoder)
    lowest = tuple(sorted(sorted(free, key=lambda block: influence[block])[:count]))
    runs = [start for start in free if set(range(start, start + count)) <= set(free)]
    shortest = [tuple(range(start, start + count)) for start in sorted(runs, key=lambda block: ends[block])[:1]]
    sets = dict.fromkeys((lowest, *shortest))
    if len(sets) == 1:
        return lowest
    judged = tokens[-max(1, _JUDGED_TOKENS // tokens.shape[1]) :]
    costs = {}
    for number, dropped in enumerate(sets):
        one = DepthPrune(count, dropped)
        result = Side(one.rewrite(ir), RenumberedWeights(weights, ir, one.kept(depth)))
        costs[dropped] = evaluate(Side(ir, weights), result, judged, dtype, device).kl
        progress(number + 1, len(sets))
    return min(costs, key=lambda dropped: costs[dropped])


def _influence(
    ir: ModelIR, weights: Weights, count: int, tokens: torch.Tensor, dtype: torch.dtype, device: torch.device
) -> tuple[list[float], dict[int, float]]:
    """Of each block 1 − mean cos(input, output); of each start the same across `count` blocks."""
    import torch

    decoder = Decoder(ir, weights, dtype, device)
    hidden = decoder.embed(torch.split(tokens, max(1, 4096 // tokens.shape[1])))
    recent: list[list[torch.Tensor]] = [hidden]
    influence: list[float] = []
    across: dict[int, float] = {}
    for index in range(len(decoder)):
        with decoder.block(index, dense_block(ir, index, weights)) as layer:
            hidden = [decoder.run(layer, index, each) for each in hidden]
        influence.append(_distance(recent[-1], hidden))
        recent.append(hidden)
        if len(recent) > count:
            across[index + 1 - count] = _distance(recent.pop(0), hidden)
    return influence, across


def _distance(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    import torch

    total = sum(
        float(torch.cosine_similarity(a.float(), b.float(), dim=-1).sum()) for a, b in zip(before, after, strict=True)
    )
    return 1.0 - total / sum(a.shape[0] * a.shape[1] for a in before)
