"""Depth pruning: take whole blocks out of the decoder. Which ones is measured (`passes.prune.influence`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from passes.base import Pass
from passes.ir.model import ModelIR, Stack
from passes.reason import Reason


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
