"""Width pruning: narrower dense MLPs, fewer key/value groups (with the query heads that share them).

Every layer keeps as many, so that config.json and every engine agree. Which ones is measured (`passes.prune.narrow`), the matrix that reads
them makes up for what is gone, and the block's last one for what the blocks so far still lack (`passes.prune.follow`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Self

from passes.base import Pass, Stage
from passes.blocks.dense_model import DenseModel
from passes.errors import Reason
from passes.ir.distortions import Distortion, Removed
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.ir.operations import forward_operations, head_operations
from passes.ir.state import FullKV
from passes.prune.config import change_decoder, config_describes, set_present, with_blocks_changed
from passes.prune.units import attention, dense_mlp
from passes.record import dataclass
from passes.steps.context import RunContext
from passes.steps.cost import StepCost, WalkSize, Work, states_bytes
from passes.steps.key import content_key
from passes.text.source import tokens_digest
from passes.text.split import FELT_SEQUENCES

#: How important a unit is (`passes.algorithms.removal.importance`, `passes.prune.sensitivity`); the last two look at no text and are there
#: to be compared with.
IMPORTANCES = ("activation", "taylor", "fisher", "hessian", "magnitude", "random")
_OF_INPUTS, _OF_GRADIENTS = ("activation", "hessian"), ("taylor", "fisher")
#: Shares of the MLPs' channels that are weighed where pruning is allowed, and how many key/value groups of those of an attention.
_SHARES, _KEPT_GROUPS = (0.05, 0.10, 0.15, 0.20, 0.25), 0.75
#: Narrower MLPs are cut to multiples of the first: the widest group of any format and the tiles of kernels, on two cards as well. Narrow
#: ones to multiples of the second, the least that kernels of 4-bit weights take (Marlin's 64 outputs).
_MULTIPLE, _NARROW_MULTIPLE, _NARROW = 256, 64, 4096
#: The nearest width that eight cards share in groups of 128 is weighed as well: of 29,568 channels (Qwen2.5 72B) no two cards do.
_EIGHT_CARDS = 8 * 128
MEASURE, PRUNE = "measure width", "prune width"


@dataclass(frozen=True)
class WidthPrune(Pass):
    """Cut every dense MLP to `intermediate` channels and every attention to `kv_heads` groups; 0 leaves a kind as it is.

    `importance`: one of `IMPORTANCES`. `compensate`: whether the matrix that reads them makes up for what is gone.
    """

    name: ClassVar[str] = "prune_width"
    stage: ClassVar[Stage] = Stage.PRUNE
    intermediate: int = 0
    kv_heads: int = 0
    importance: str = "hessian"
    compensate: bool = True

    @property
    def looks(self) -> bool:
        """Whether it looks at the inputs of the matrices that read what goes."""
        return self.compensate or self.importance in _OF_INPUTS

    @property
    def needs_text(self) -> bool:
        """Whether it looks at inputs, or at gradients."""
        return self.looks or self.importance in _OF_GRADIENTS

    @classmethod
    def degrees(cls, ir: ModelIR) -> Iterator[Self]:
        """Yield MLPs without `_SHARES` of their channels or as wide as cards share, widest first, then attentions with fewer groups."""
        blocks = [block for block, _ in ir.decoder.counts]
        inner = min((lin.in_features for b in blocks for lin in dense_mlp(b) if lin.role is Role.DOWN), default=0)
        multiple = _MULTIPLE if inner >= _NARROW else _NARROW_MULTIPLE
        widths = {int(inner * (1 - share)) // multiple * multiple for share in _SHARES}
        if inner >= _NARROW:
            widths.add(inner // _EIGHT_CARDS * _EIGHT_CARDS)
        yield from (cls(width) for width in sorted(widths - {0, inner}, reverse=True))
        groups = min((block.state.kv_heads for block in blocks if isinstance(block.state, FullKV)), default=0)
        kept = int(groups * _KEPT_GROUPS)
        queries = [block.heads * block.state.head_dim for block in blocks if isinstance(block.state, FullKV)]
        if kept and kept == groups * _KEPT_GROUPS and all(kept * q // groups % _NARROW_MULTIPLE == 0 for q in queries):
            yield cls(kv_heads=kept)

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Refuse sizes that are not smaller, attentions whose parts are not plain groups, weights that are quantized, odd config files."""
        if self.importance not in IMPORTANCES:
            known = ", ".join(IMPORTANCES)
            return (Reason("unknown_importance", f"no importance {self.importance!r}", f"one of {known}"),)
        if not self.intermediate and not self.kv_heads:
            return (Reason("width_prune_nothing", "name what to cut", "intermediate: 8192"),)
        blocks = [block for block, _ in ir.decoder.counts]
        reasons = [reason for block in blocks if (reason := self._block_reason(block)) is not None]
        if reasons:
            return (reasons[0],)
        if self.intermediate and not any(map(dense_mlp, blocks)):
            return (Reason("no_dense_mlp", f"{ir.name} has no MLP that every token uses", "prune experts or depth"),)
        if not _config_says_it(json.dumps(ir.config, sort_keys=True, default=str), self):
            message = f"no config.json of {ir.architecture} describes {ir.name} that narrow"
            return (Reason("prune_width_layout", message, "prune by depth or experts instead"),)
        return ()

    def _block_reason(self, block: Block) -> Reason | None:
        cut = [*dense_mlp(block)] if self.intermediate else []
        cut += attention(block) if self.kv_heads else ()
        if any(linear.storage.is_quantized for linear in cut):
            message = "rows and columns cannot be taken out of quantized weights: errors were compensated across them"
            return Reason("prune_needs_dense", message, "prune the dense model, then quantize")
        inner = {linear.in_features for linear in cut if linear.role is Role.DOWN}
        if self.intermediate and any(not 0 < self.intermediate < size for size in inner):
            message = f"{self.intermediate} channels are not fewer than {max(inner)}"
            return Reason("not_narrower", message, f"below {min(inner)}")
        return self._attention_reason(block) if self.kv_heads else None

    def _attention_reason(self, block: Block) -> Reason | None:
        if not isinstance(block.state, FullKV) or not attention(block):
            return Reason("no_kv_groups", "a layer has no key/value groups to cut", "intermediate alone")
        if not 0 < self.kv_heads < block.state.kv_heads:
            return Reason("not_narrower", f"{self.kv_heads} groups are not fewer than {block.state.kv_heads}")
        queries = block.heads * block.state.head_dim
        wide = any(t.elements > block.state.head_dim for t in block.tensors if "q_norm" in t.name or "k_norm" in t.name)
        fused = any(lin.role is Role.QKV and not lin.name.endswith("qkv_proj") for lin in attention(block))
        if wide or fused or any(lin.role is Role.Q and lin.out_features != queries for lin in attention(block)):
            message = "the attention has norms or gates over all heads, or a fused matrix of an order of its own"
            return Reason("attention_not_in_groups", message, "intermediate alone")
        return None

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Describe narrower matrices, caches and config."""
        out = with_blocks_changed(ir, lambda block: _narrow(block, self.intermediate, self.kv_heads))
        classes = out.decoder.classes
        heads = next((block.heads for block in classes if block.heads), 0)
        head_dim = next((block.state.head_dim for block in classes if isinstance(block.state, FullKV)), 0)

        def shrink(part: dict[str, Any]) -> None:
            if self.intermediate:
                set_present(part, ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner"), self.intermediate)
            if self.kv_heads:
                part |= {"num_key_value_heads": self.kv_heads, "num_attention_heads": heads, "head_dim": head_dim}

        return replace(out, config=change_decoder(out.config, shrink))

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return the share of the decoder's weights that goes."""
        return (Removed("weights", removed_share(ir, self.rewrite(ir))),)

    def dense(self, before: DenseModel, run: RunContext) -> DenseModel:
        """Make the narrower model, block by block as a step; what gradients tell is measured in a step before."""
        from passes.prune.narrow import Narrowing
        from passes.walk.edit import EditingWalk

        edit = Narrowing(self, before.ir.decoder, tuple(self._scores(before, run)))
        return EditingWalk(before, self.rewrite(before.ir), edit).result(PRUNE, self.text(), run)

    def _scores(self, before: DenseModel, run: RunContext) -> list[dict[str, list[float]]]:
        if self.importance not in _OF_GRADIENTS:
            return []
        from passes.prune.sensitivity import unit_scores

        short = run.on_text(run.text[:FELT_SEQUENCES])
        # Which units there are depends on what is cut, not on how many stay.
        kinds = (bool(self.intermediate), bool(self.kv_heads))
        key = content_key(*before.identity, "sensitivity", kinds, tokens_digest(short.text))
        measured = short.measured(MEASURE, "units", key, lambda inside: {"blocks": unit_scores(self, before, inside)})
        return [block[self.importance] for block in measured["blocks"]]

    @property
    def choice_steps(self) -> tuple[str, ...]:
        """The walk that cuts, and the measurement of what gradients tell before it."""
        return (MEASURE, PRUNE) if self.importance in _OF_GRADIENTS else (PRUNE,)

    def cost(self, source: ModelIR, walk: WalkSize) -> dict[str, StepCost]:
        """Return what its walk takes: forwards through each block as it was and as it is, the readers' Hessians, a copy of the model."""
        short = min(walk.samples, FELT_SEQUENCES) * walk.length
        forward, disk = forward_operations(source), 3 * states_bytes(source, walk.tokens) + source.tensor_bytes
        looked, forwards = walk.tokens if self.looks else 0, 2
        if self.compensate:  # the source beside it, and each block once more to see what it still lacks
            forwards, disk = 4, disk + 2 * states_bytes(source, walk.tokens)
        readers = [
            (lin.in_features, lin.out_features, count)
            for block, count in source.decoder.counts
            for lin in (*(dense_mlp(block) if self.intermediate else ()), *(attention(block) if self.kv_heads else ()))
            if lin.role in (Role.DOWN, Role.O)
        ]
        work = Work(
            forwards=forwards * looked * forward,
            hessians=looked * sum(inner**2 * count for inner, _, count in readers),
            compensation=sum(inner**2 * (inner + 2 * outer) * count for inner, outer, count in readers),
            moved=2 * source.tensor_bytes,
        )
        costs = {PRUNE: StepCost(work, walk.memory, disk)}
        if self.importance in _OF_GRADIENTS:
            back = 3 * short * (forward + head_operations(source))
            states = (len(source.decoder.layers) + 3) * states_bytes(source, short)
            measuring = Work(forwards=back, moved=2 * source.tensor_bytes)
            costs = {MEASURE: StepCost(measuring, walk.block_memory + walk.batch_memory, states)} | costs
        return costs

    def title(self) -> str:
        """Return `keep 1216 channels` or `keep 2 key/value groups`, or both."""
        parts = [f"{self.intermediate} channels"] if self.intermediate else []
        parts += [f"{self.kv_heads} key/value groups"] if self.kv_heads else []
        return f"keep {' and '.join(parts)}"


def removed_share(before: ModelIR, after: ModelIR) -> float:
    """Return the share of the decoder's weights that is gone: embeddings, which stay, are no part of what is lost."""

    def weights(ir: ModelIR) -> int:
        return sum(count * sum(lin.weights for lin in block.linears) for block, count in ir.decoder.counts)

    return 1 - weights(after) / weights(before)


@lru_cache(maxsize=1 << 10)
def _config_says_it(config: str, pass_: WidthPrune) -> bool:
    return config_describes(json.loads(config), pass_.rewrite, assumed=True)


@lru_cache(maxsize=1 << 10)
def _narrow(block: Block, intermediate: int, kv_heads: int) -> Block:
    dense, heads_of = set(dense_mlp(block)), set(attention(block))
    state, heads, share = block.state, block.heads, (1, 1)
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
        if linear in heads_of:
            return replace(linear, out_features=linear.out_features * share[0] // share[1])
        return linear

    return block.replace(linears=tuple(cut(linear) for linear in block.linears), state=state, heads=heads)
