"""Depth pruning: take whole blocks out of the decoder.

Which blocks cost least is measured: block influence 1 − cos(input, output) averaged over tokens (ShortGPT, Men et al. 2024,
eq. 1), and for a run of blocks the angular distance across it (Gromov et al. 2024, arXiv 2403.17887). The two sets that these
name are tried, and the one with the lower KL against the source on the calibration text is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from passes.adapters import Decoder, Weights
from passes.base import Pass
from passes.evaluate import Side, evaluate
from passes.ir.model import ModelIR, Stack
from passes.members import dense_block
from passes.reason import Reason

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DepthPrune(Pass):
    """Drop `count` decoder blocks. `blocks`: which (indices in the source); None until they were measured."""

    name: ClassVar[str] = "prune_depth"
    count: int
    blocks: tuple[int, ...] | None = None

    @property
    def resolved(self) -> bool:
        """Whether the blocks to drop are known."""
        return self.blocks is not None

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """At least two blocks stay; unmeasured choices need equal blocks, so that sizes are exact whichever go."""
        depth = len(ir.decoder.layers)
        if not 1 <= self.count <= depth - 2:
            return (
                Reason(
                    "prune_depth_count", f"{self.count} of {depth} blocks cannot go", f"drop 1 to {depth - 2} blocks"
                ),
            )
        if self.blocks is None and len(set(ir.decoder.layers)) > 1:
            return (
                Reason(
                    "prune_depth_unequal", f"the blocks of {ir.name} are of several kinds", "name the blocks to drop"
                ),
            )
        if self.blocks is not None and (
            len(set(self.blocks)) != self.count or not all(0 <= block < depth for block in self.blocks)
        ):
            return (
                Reason(
                    "prune_depth_blocks",
                    f"{list(self.blocks)} are not {self.count} blocks of {depth}",
                    "name each block once",
                ),
            )
        return ()

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Fewer layers, and a config that says so. Before measuring, the last ones but one stand for the choice."""
        kept = self.kept(len(ir.decoder.layers))
        decoder: Stack = replace(ir.decoder, layers=tuple(ir.decoder.layers[index] for index in kept))
        return replace(ir.with_decoder(decoder), config=pruned_config(ir.config, kept))

    def kept(self, depth: int) -> tuple[int, ...]:
        """Source indices of the blocks that stay, in order."""
        dropped = self.blocks if self.blocks is not None else range(depth - 1 - self.count, depth - 1)
        return tuple(index for index in range(depth) if index not in set(dropped))


def pruned_config(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A config.json for fewer layers: their number, and every list that has one entry a layer. Nested text configs too."""
    out = dict(config)
    for key, value in config.items():
        if isinstance(value, Mapping) and "num_hidden_layers" in value:
            out[key] = pruned_config(value, kept)
    depth = config.get("num_hidden_layers")
    if isinstance(depth, int):
        out["num_hidden_layers"] = len(kept)
        for key, value in config.items():
            if isinstance(value, list) and len(value) == depth and depth > 1:
                out[key] = [value[index] for index in kept]
    return out


class RenumberedWeights:
    """A source's weights under the names they have after blocks were dropped. Nothing is copied."""

    def __init__(self, weights: Weights, ir: ModelIR, kept: Sequence[int]) -> None:
        self._weights = weights
        stack = ir.decoder
        self._prefixes = {stack.layer_prefix(new): stack.layer_prefix(old) for new, old in enumerate(kept)}
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


def choose_blocks(
    ir: ModelIR,
    weights: Weights,
    count: int,
    tokens: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, ...]:
    """The `count` blocks whose removal costs least on `tokens` `[S, T]`; the first and the last block always stay."""
    influence, ends = _influence(ir, weights, count, tokens, dtype, device)
    depth = len(ir.decoder.layers)
    inner = range(1, depth - 1)
    lowest = tuple(sorted(sorted(inner, key=lambda block: influence[block])[:count]))
    start = min(range(1, depth - count), key=lambda block: ends[block])
    sets = dict.fromkeys((lowest, tuple(range(start, start + count))))
    if len(sets) == 1:
        return lowest
    costs = {}
    for number, dropped in enumerate(sets):
        one = DepthPrune(count, dropped)
        result = Side(one.rewrite(ir), RenumberedWeights(weights, ir, one.kept(depth)))
        costs[dropped] = evaluate(Side(ir, weights), result, tokens, dtype, device).kl
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
