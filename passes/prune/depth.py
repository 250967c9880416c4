"""Depth pruning: take whole blocks out of the decoder. Which ones is measured (`passes.prune.influence`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar, Self

from passes.base import Pass, Stage
from passes.blocks.dense_model import DenseModel
from passes.blocks.renumbered import RenumberedWeights, renumbered
from passes.errors import Reason
from passes.ir.distortions import Distortion, Removed
from passes.ir.model import Block, ModelIR, Stack
from passes.ir.operations import forward_operations, head_operations
from passes.ir.state import ChunkedKV, FullKV, LayerState, Recurrent, SharedKV, SlidingKV
from passes.prune.config import config_describes, with_fewer_layers
from passes.record import dataclass
from passes.steps.context import RunContext
from passes.steps.cost import StepCost, WalkSize, Work, states_bytes
from passes.steps.key import content_key
from passes.text.source import tokens_digest
from passes.text.split import JUDGED_TOKENS

#: Shares of the blocks that are weighed where pruning is allowed.
_SHARES = (0.05, 0.10, 0.15, 0.20, 0.25)
#: `layer_types` entries as transformers names them, by the exact cache kind.
_KINDS: dict[type[LayerState], str] = {
    FullKV: "full_attention", SlidingKV: "sliding_attention", ChunkedKV: "chunked_attention", Recurrent: "linear_attention",
}  # fmt: skip


@dataclass(frozen=True)
class DepthPrune(Pass):
    """Drop `count` decoder blocks. `blocks`: which (indices in the source); None until they were measured."""

    name: ClassVar[str] = "prune_depth"
    stage: ClassVar[Stage] = Stage.PRUNE
    count: int
    blocks: tuple[int, ...] | None = None

    @property
    def resolved(self) -> bool:
        """Whether the blocks to drop are known."""
        return self.blocks is not None

    @classmethod
    def degrees(cls, ir: ModelIR) -> Iterator[Self]:
        """Yield `_SHARES` of the blocks, at least one; shares that come to the same count once."""
        layers = len(ir.decoder.layers)
        yield from (cls(count) for count in sorted({max(1, round(layers * share)) for share in _SHARES}))

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Require that at least two blocks stay, unmeasured choices are of one kind, and a config.json can say what stays."""
        depth, choice = len(ir.decoder.layers), len(candidates(ir.decoder))
        if not 1 <= self.count <= depth - 2:
            return (
                Reason(
                    "prune_depth_count", f"{self.count} of {depth} blocks cannot go", f"drop 1 to {depth - 2} blocks"
                ),
            )
        if self.blocks is None and self.count > choice:
            message = f"the blocks of {ir.name} are of several kinds, and {choice} of the commonest can go"
            return (Reason("prune_depth_unequal", message, f"drop 1 to {choice} blocks"),)
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
        if not _config_says_it(ir, self._named(ir.decoder).kept(depth)):
            message = f"no config.json of {ir.architecture} describes {ir.name} without these blocks"
            return (Reason("prune_depth_layout", message, "prune the width (intermediate) or experts instead"),)
        return ()

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Describe fewer layers, and a config that says so. Before measuring, the last candidates stand for the choice."""
        return _with_layers(ir, self._named(ir.decoder).kept(len(ir.decoder.layers)))

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return the share of the blocks that goes."""
        return (Removed("blocks", self.count / max(1, len(ir.decoder.layers))),)

    def cost(self, source: ModelIR, walk: WalkSize) -> dict[str, StepCost]:
        """Return what measuring takes: a forward for block influence; of fewer tokens one after each removal but the last, and six for
        three sets of blocks beside the source.
        """
        if self.resolved:
            return {}
        forward = forward_operations(source)
        short = min(walk.tokens, JUDGED_TOKENS)
        judged = short * ((self.count - 1) * forward + 6 * (forward + head_operations(source)))
        disk = (self.count + 2) * states_bytes(source, walk.tokens)
        return {
            "measure depth": StepCost(
                Work(forwards=walk.tokens * forward + judged, moved=5 * source.tensor_bytes), disk=disk
            )
        }

    @property
    def choice_steps(self) -> tuple[str, ...]:
        """Its one measurement, unless the blocks are named."""
        return () if self.resolved else ("measure depth",)

    def title(self) -> str:
        """Return `drop 3 blocks`."""
        return f"drop {self.count} blocks"

    def resolve(self, dense: DenseModel, run: RunContext) -> DepthPrune:
        """Measure which blocks cost least to drop, where they are not named."""
        if self.resolved:
            return self
        from passes.prune.influence import choose_blocks

        key = content_key(*dense.identity, "depth", self.count, tokens_digest(run.text))
        measured = run.measured(
            "measure depth", "depth", key, lambda inside: {"blocks": list(choose_blocks(self.count, dense, inside))}
        )
        return DepthPrune(self.count, tuple(measured["blocks"]))

    def dense(self, before: DenseModel, run: RunContext) -> DenseModel:
        """View the model without the blocks; nothing is copied."""
        kept = self.kept(len(before))
        weights = RenumberedWeights(before.weights, before.ir, kept)
        identity = (*before.identity, self.name, self.options())
        return DenseModel(self.rewrite(before.ir), weights, identity, origin_blocks=kept)

    def kept(self, depth: int) -> tuple[int, ...]:
        """Return source indices of the blocks that stay, in order. The blocks to drop must be known."""
        dropped = set(self.blocks or ())
        return tuple(index for index in range(depth) if index not in dropped)

    def _named(self, decoder: Stack) -> DepthPrune:
        return self if self.blocks is not None else DepthPrune(self.count, candidates(decoder)[-self.count :])


def candidates(decoder: Stack) -> tuple[int, ...]:
    """List the blocks that a measured choice is made among: the commonest kind, so that sizes are exact whichever go.

    The first and the last block always stay.
    """
    inner = range(1, len(decoder.layers) - 1)
    kinds = Counter(decoder.layers[index] for index in inner)
    commonest = max(kinds, key=lambda kind: kinds[kind], default=None)
    return tuple(index for index in inner if decoder.layers[index] == commonest)


def _with_layers(ir: ModelIR, kept: Sequence[int]) -> ModelIR:
    whole = ir.decoder
    moved = {old: new for new, old in enumerate(kept)}
    blocks = [_reading(whole.block(index), moved) for index in kept]
    decoder = replace(whole, classes=(), layers=()).with_blocks(tuple(blocks))
    others = iter(renumbered(ir.stacks, whole, kept))
    stacks = tuple(decoder if stack.name == "decoder" else next(others) for stack in ir.stacks)
    depth = len(whole.layers)
    config = with_fewer_layers(ir.config, kept, depth, _kinds(whole))
    return replace(ir, stacks=stacks, config=config)


def _reading(block: Block, moved: Mapping[int, int]) -> Block:
    """A block whose shared cache is that of the same earlier layer under its new number; −1 where that one is gone."""
    if isinstance(block.state, SharedKV):
        return block.replace(state=SharedKV(moved.get(block.state.source, -1)))
    return block


def _kinds(decoder: Stack) -> tuple[str, ...]:
    """`layer_types` of the blocks; nothing where a kind has no such name."""
    kinds = [_KINDS.get(type(decoder.block(index).state)) for index in range(len(decoder.layers))]
    return tuple(kind for kind in kinds if kind is not None) if None not in kinds else ()


def _config_says_it(ir: ModelIR, kept: Sequence[int]) -> bool:
    """Whether the config of the kept blocks describes just them, as the config of all blocks describes all.

    Families place layers by their number (every fourth one), or give a matrix outside of the blocks a part for each (Gemma 4).
    """
    return _describes(json.dumps(ir.config, sort_keys=True, default=str), tuple(kept), len(ir.decoder.counts) == 1)


@lru_cache(maxsize=1 << 10)
def _describes(config: str, kept: tuple[int, ...], equal: bool) -> bool:
    # Read under an assumption every layer is as the next.
    return config_describes(json.loads(config), lambda whole: _with_layers(whole, kept), assumed=equal)
