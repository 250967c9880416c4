"""Expert pruning: each layer keeps the experts that add most (`passes.prune.reap`); the router loses the rows of the others."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Self

from passes.base import Pass, Stage
from passes.blocks.dense_model import DenseModel
from passes.errors import Reason
from passes.formats.tensor import Tensor
from passes.ir.architectures.config import Config
from passes.ir.distortions import Distortion, Removed
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.ir.operations import forward_operations
from passes.prune.config import change_decoder, config_describes, decoder_part, set_present, with_blocks_changed
from passes.record import dataclass
from passes.steps.context import RunContext
from passes.steps.cost import StepCost, WalkSize, Work, states_bytes

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
#: Shares of the experts that are weighed where pruning is allowed.
_SHARES = (0.125, 0.25, 0.5)
#: What routers add to their scores: an element an expert.
SCORE_BIASES = ("correction_bias", "expert_bias")
PRUNE = "prune experts"


@dataclass(frozen=True)
class ExpertPrune(Pass):
    """Keep `keep` routed experts in every mixture layer."""

    name: ClassVar[str] = "prune_experts"
    stage: ClassVar[Stage] = Stage.PRUNE
    keep: int

    @classmethod
    def degrees(cls, ir: ModelIR) -> Iterator[Self]:
        """Yield banks without `_SHARES` of their experts, most kept first."""
        experts = min(
            (lin.copies for block, _ in ir.decoder.counts for lin in block.linears if lin.copies > 1), default=0
        )
        kept = {experts - round(experts * share) for share in _SHARES} - {0, experts}
        yield from (cls(count) for count in sorted(kept, reverse=True))

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Refuse models without experts, fewer than a token uses, groups of experts that would differ in size."""
        banks = [linear for block, _ in ir.decoder.counts for linear in block.linears if linear.copies > 1]
        if not banks:
            return (Reason("no_experts", f"{ir.name} has no experts", "prune by depth or width"),)
        if any(linear.storage.is_quantized for linear in banks):
            message = "experts are chosen on dense weights, and these are quantized"
            return (Reason("prune_needs_dense", message, "prune the dense model, then quantize"),)
        most, active = min(linear.copies for linear in banks), max(linear.active for linear in banks)
        if not active <= self.keep < most:
            return (
                Reason(
                    "experts_kept",
                    f"{self.keep} experts: a token uses {active:g} of {most}",
                    f"{active:g} to {most - 1}",
                ),
            )
        groups, routed = expert_groups(ir)
        if self.keep % groups:
            return (
                Reason(
                    "expert_groups", f"{self.keep} experts do not split into {groups} groups", f"a multiple of {groups}"
                ),
            )
        if groups > 1 and (self.keep < 2 * groups or self.keep // groups * routed < active):
            message = f"{self.keep} experts in {groups} groups: a token uses {active:g} of {routed} groups, chosen by their best two"
            return (
                Reason("expert_groups", message, f"{max(2 * groups, math.ceil(active / routed) * groups)} or more"),
            )
        if not _config_says_it(json.dumps(ir.config, sort_keys=True, default=str), self):
            message = f"no config.json of {ir.architecture} describes {ir.name} with {self.keep} experts"
            return (Reason("prune_experts_layout", message, "prune by depth or width instead"),)
        return ()

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Describe smaller banks, routers and config."""
        out = with_blocks_changed(ir, lambda block: _fewer(block, self.keep))

        def shrink(part: dict[str, Any]) -> None:
            set_present(part, _COUNTS, self.keep)

        return replace(out, config=change_decoder(out.config, shrink))

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return the share of the experts that goes."""
        most = max((lin.copies for block, _ in ir.decoder.counts for lin in block.linears), default=self.keep)
        return (Removed("experts", 1 - self.keep / most),)

    @property
    def needs_text(self) -> bool:
        """True: experts are judged by what they make of a text."""
        return True

    def dense(self, before: DenseModel, run: RunContext) -> DenseModel:
        """Make the model with fewer experts, block by block as a step."""
        from passes.prune.reap import FewerExperts
        from passes.walk.edit import EditingWalk

        edit = FewerExperts(before.ir.decoder, self.keep, expert_groups(before.ir)[0])
        return EditingWalk(before, self.rewrite(before.ir), edit).result(PRUNE, self.text(), run)

    @property
    def choice_steps(self) -> tuple[str, ...]:
        """The walk that measures the experts and cuts."""
        return (PRUNE,)

    def cost(self, source: ModelIR, walk: WalkSize) -> dict[str, StepCost]:
        """Return what its walk takes: forwards through each block as it was and as it is, a copy of the model."""
        work = Work(forwards=2 * walk.tokens * forward_operations(source), moved=2 * source.tensor_bytes)
        disk = 3 * states_bytes(source, walk.tokens) + source.tensor_bytes
        return {PRUNE: StepCost(work, walk.block_memory + walk.batch_memory, disk)}

    def title(self) -> str:
        """Return `keep 64 experts`."""
        return f"keep {self.keep} experts"


def expert_groups(ir: ModelIR) -> tuple[int, int]:
    """Return into how many groups the router puts the experts, and how many of these a token may use (DeepSeek V3)."""
    config = Config(decoder_part(ir.config), ir.name)
    return config.integer("n_group", default=1), config.integer("topk_group", default=1)


@lru_cache(maxsize=1 << 10)
def _config_says_it(config: str, pass_: ExpertPrune) -> bool:
    return config_describes(json.loads(config), pass_.rewrite, assumed=True)


@lru_cache(maxsize=1 << 10)
def _fewer(block: Block, keep: int) -> Block:
    banks = [linear.copies for linear in block.linears if linear.copies > 1]
    if not banks:
        return block
    count = max(banks)

    def cut(linear: Linear) -> Linear:
        if linear.copies > 1:
            return replace(linear, copies=keep)
        if linear.role is Role.ROUTER and linear.out_features == count:
            return replace(linear, out_features=keep)
        return linear

    def shorten(tensor: Tensor) -> Tensor:
        return replace(tensor, shape=(keep,)) if tensor.name.endswith(SCORE_BIASES) else tensor

    return block.replace(
        linears=tuple(cut(linear) for linear in block.linears), tensors=tuple(shorten(t) for t in block.tensors)
    )
