"""Width pruning: narrower dense MLPs, fewer key/value groups (with the query heads that share them)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

from passes.base import Pass, Stage
from passes.errors import Reason
from passes.ir.distortions import Distortion, Removed
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.ir.state import FullKV
from passes.prune.config import change_decoder, set_present

_ATTENTION = (Role.Q, Role.K, Role.V, Role.QKV, Role.O)
_MLP = (Role.GATE, Role.UP, Role.GATE_UP, Role.DOWN)
#: Shares of the MLPs' channels that are weighed where pruning is allowed.
_SHARES = (0.05, 0.10, 0.15, 0.20, 0.25)
#: Narrower MLPs are cut to multiples of this, the widest group of any format and the tile of kernels.
_MULTIPLE = 256


@dataclass(frozen=True)
class WidthPrune(Pass):
    """Cut every dense MLP to `intermediate` channels and every attention to `kv_heads` groups; 0 leaves a kind as it is."""

    name: ClassVar[str] = "prune_width"
    stage: ClassVar[Stage] = Stage.PRUNE
    intermediate: int = 0
    kv_heads: int = 0

    @classmethod
    def degrees(cls, ir: ModelIR) -> Iterator[Self]:
        """Yield MLPs without `_SHARES` of their channels, widest first."""
        linears = [linear for block, _ in ir.decoder.counts for linear in block.linears]
        inner = min((lin.in_features for lin in linears if lin.role is Role.DOWN and lin.copies == 1), default=0)
        widths = {math.floor(inner * (1 - share) / _MULTIPLE) * _MULTIPLE for share in _SHARES}
        yield from (cls(width) for width in sorted(widths - {0, inner}, reverse=True))

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Sizes that are not smaller, and attentions whose parts are not plain groups."""
        reasons = []
        for block, _ in ir.decoder.counts:
            inner = {linear.in_features for linear in _dense_mlp(block) if linear.role is Role.DOWN}
            if self.intermediate and any(not 0 < self.intermediate < size for size in inner):
                reasons.append(
                    Reason(
                        "not_narrower",
                        f"{self.intermediate} channels are not fewer than {max(inner)}",
                        f"below {min(inner)}",
                    )
                )
            if self.kv_heads and (reason := self._attention_reason(block)):
                reasons.append(reason)
        if not self.intermediate and not self.kv_heads:
            reasons.append(Reason("width_prune_nothing", "name what to cut", "intermediate: 8192"))
        return tuple(reasons[:1])

    def _attention_reason(self, block: Block) -> Reason | None:
        attention = [linear for linear in block.linears if linear.role in _ATTENTION]
        if not isinstance(block.state, FullKV) or not attention:
            return Reason("no_kv_groups", "a layer has no key/value groups to cut", "intermediate alone")
        if not 0 < self.kv_heads < block.state.kv_heads:
            return Reason("not_narrower", f"{self.kv_heads} groups are not fewer than {block.state.kv_heads}")
        queries = block.heads * block.state.head_dim
        wide = any(t.elements > block.state.head_dim for t in block.tensors if "q_norm" in t.name or "k_norm" in t.name)
        if wide or any(linear.role is Role.Q and linear.out_features != queries for linear in attention):
            return Reason(
                "attention_not_in_groups", "the attention has norms or gates over all heads", "intermediate alone"
            )
        return None

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Narrower matrices, caches and config."""
        decoder = ir.decoder.map_blocks(lambda block: _narrow(block, self.intermediate, self.kv_heads))
        heads = next((block.heads for block in decoder.classes if block.heads), 0)
        head_dim = next((b.state.head_dim for b in decoder.classes if isinstance(b.state, FullKV)), 0)

        def shrink(part: dict[str, Any]) -> None:
            if self.intermediate:
                set_present(part, ("intermediate_size", "ffn_hidden_size", "n_inner"), self.intermediate)
            if self.kv_heads:
                part |= {"num_key_value_heads": self.kv_heads, "num_attention_heads": heads, "head_dim": head_dim}

        return replace(ir.with_decoder(decoder), config=change_decoder(ir.config, shrink))

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return the share of the weights that goes."""
        return (Removed("weights", 1 - self.rewrite(ir).weights / ir.weights),)

    def missing(self, ir: ModelIR) -> str | None:
        """Say that it cannot be run: which channels and groups matter least is to be measured on the weights."""
        return "width pruning has no executing face yet: choosing and cutting channels on the weights"


def _dense_mlp(block: Block) -> list[Linear]:
    return [lin for lin in block.linears if lin.role in _MLP and lin.copies == 1 and not lin.shared_expert]


@lru_cache(maxsize=1 << 10)
def _narrow(block: Block, intermediate: int, kv_heads: int) -> Block:
    dense, state, heads = set(_dense_mlp(block)), block.state, block.heads
    share = (1, 1)
    if kv_heads and isinstance(state, FullKV):
        share = (kv_heads, state.kv_heads)
        heads = heads * kv_heads // state.kv_heads
        state = replace(state, kv_heads=kv_heads)

    def cut(linear: Linear) -> Linear:
        if linear in dense and intermediate:
            if linear.role is Role.DOWN:
                return replace(linear, in_features=intermediate)
            return replace(linear, out_features=intermediate * (2 if linear.role is Role.GATE_UP else 1))
        if linear.role is Role.O:
            return replace(linear, in_features=linear.in_features * share[0] // share[1])
        if linear.role in _ATTENTION:
            return replace(linear, out_features=linear.out_features * share[0] // share[1])
        return linear

    return block.replace(linears=tuple(cut(linear) for linear in block.linears), state=state, heads=heads)
