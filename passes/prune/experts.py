"""Expert pruning: each layer keeps its most used experts; the router loses the rows of the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

from passes.base import Pass, Stage
from passes.errors import Reason
from passes.formats.tensor import Tensor
from passes.ir.architectures.config import Config
from passes.ir.distortions import Distortion, Removed
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.prune.config import change_decoder, decoder_part, set_present

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
#: Shares of the experts that are weighed where pruning is allowed.
_SHARES = (0.125, 0.25, 0.5)


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
        """No experts; fewer than a token uses; groups of experts that would differ in size."""
        banks = [linear for block, _ in ir.decoder.counts for linear in block.linears if linear.copies > 1]
        if not banks:
            return (Reason("no_experts", f"{ir.name} has no experts", "prune by depth or width"),)
        most, active = min(linear.copies for linear in banks), max(linear.active for linear in banks)
        if not active <= self.keep < most:
            return (
                Reason(
                    "experts_kept",
                    f"{self.keep} experts: a token uses {active:g} of {most}",
                    f"{active:g} to {most - 1}",
                ),
            )
        groups = Config(decoder_part(ir.config), ir.name).integer("n_group", default=1)
        if self.keep % groups:
            return (
                Reason(
                    "expert_groups", f"{self.keep} experts do not split into {groups} groups", f"a multiple of {groups}"
                ),
            )
        return ()

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Smaller banks, routers and config."""
        out = ir.with_decoder(ir.decoder.map_blocks(lambda block: _fewer(block, self.keep)))

        def shrink(part: dict[str, Any]) -> None:
            set_present(part, _COUNTS, self.keep)

        return replace(out, config=change_decoder(ir.config, shrink))

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return the share of the weights that goes."""
        return (Removed("weights", 1 - self.rewrite(ir).weights / ir.weights),)

    def missing(self, ir: ModelIR) -> str | None:
        """Say that it cannot be run: which experts are used least is to be measured on the weights."""
        return "expert pruning has no executing face yet: counting routed tokens and dropping experts on the weights"


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
        # What the router adds to its scores has one element an expert (DeepSeek's e_score_correction_bias).
        return replace(tensor, shape=(keep,)) if tensor.shape == (count,) and "bias" in tensor.name else tensor

    return block.replace(
        linears=tuple(cut(linear) for linear in block.linears), tensors=tuple(shorten(t) for t in block.tensors)
    )
