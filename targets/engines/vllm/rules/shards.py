"""What tensor parallelism must divide: heads, keys' and values' heads, the feed-forward, the vocabulary, groups of scales.

Sources: `model_executor/layers/linear.py` (`QKVParallelLinear`: below the number of KV heads the degree divides it, above it is a multiple;
column- and row-parallel sizes are divided without rest), `vocab_parallel_embedding.py` (padded to 64, then divided),
`config/model.py:verify_with_parallel_config` (tokens of the cache over ranks).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from passes.errors import Reason
from passes.ir.model import Block, ModelIR, Role
from passes.ir.state import FullKV
from targets.engines.engine import Parallel
from targets.engines.resident_weights import Ranks

_PADDED = 64
#: What mends a cut that experts do not take.
WHOLE_EXPERTS = "whole experts on each card (--enable-expert-parallel)"
_FEED_FORWARD = (Role.GATE, Role.UP, Role.GATE_UP, Role.DOWN)
#: Degrees that are offered in place of one that does not divide.
_DEGREES = (2, 4, 8, 16)


def shard_reasons(ir: ModelIR, parallel: Parallel) -> list[Reason]:
    """Return why a model cannot be cut so: of each kind the first."""
    out: list[Reason] = []
    if parallel.pp > len(ir.decoder.layers):
        message = f"{parallel.pp} stages for {len(ir.decoder.layers)} layers"
        out.append(Reason("too_many_stages", message, "fewer stages"))
    ranks = Ranks.of(parallel)
    kinds = (
        _heads(ir, parallel.tp),
        _kv_heads(ir, parallel.tp),
        _rows(ir, ranks),
        _vocabulary(ir, parallel.tp),
        _groups(ir, ranks),
    )
    return out + [reason for kind in kinds if (reason := next(kind, None)) is not None]


def stored_cut_reasons(ir: ModelIR, tp: int) -> Iterator[Reason]:
    """Refuse a cut of what bitsandbytes stored, whose scales are of whole matrices: so all of `bitsandbytes_loader.py` (0.7.3 `loader.py`
    to 0.27, then the package vllm-bnb-plugin). What is rounded while loading is cut first.
    """
    if tp > 1 and ir.quant_method == "bitsandbytes":
        message = f"vLLM cuts no checkpoint that bitsandbytes made, whose scales are of whole matrices, into {tp}"
        yield Reason(
            "tp_of_bitsandbytes", message, "pipeline parallelism, or nf4 of the dense model, rounded while loading"
        )


def spread_reasons(ir: ModelIR, tp: int, ranks: int) -> Iterator[Reason]:
    """Return why the tokens of the cache cannot be spread over `ranks` (`--decode-context-parallel-size`): they are ranks of tensor
    parallelism, and those of keys and values the ones that repeat a head.
    """
    if ranks == 1:
        return
    code, flag = "context_parallel_does_not_divide", "--decode-context-parallel-size"
    legal = [n for n in _DEGREES if _spreads(ir, tp, n)]
    remedy = f"{flag} {' or '.join(map(str, legal))}" if legal else f"leave {flag} out"
    if tp % ranks:
        yield Reason(code, f"the cache's tokens cannot be spread over {ranks} of {tp} ranks", remedy)
    elif not _spreads(ir, tp, ranks):
        heads = max(block.state.kv_heads for block in _blocks(ir) if isinstance(block.state, FullKV))
        message = f"{heads} heads of keys and values are not repeated on {ranks} of {tp} ranks, over which the cache's tokens are spread"
        yield Reason(code, message, remedy)


def _spreads(ir: ModelIR, tp: int, ranks: int) -> bool:
    """Whether ranks that are there hold the same heads, for as many queries each."""
    shared = [(block.heads, block.state.kv_heads) for block in _blocks(ir) if isinstance(block.state, FullKV)]
    return tp % ranks == 0 and all(ranks <= tp // kept and heads // kept % ranks == 0 for heads, kept in shared)


def _blocks(ir: ModelIR) -> Iterator[Block]:
    return (block for block, _ in ir.decoder.counts)


def _heads(ir: ModelIR, tp: int) -> Iterator[Reason]:
    heads = {block.heads for block in _blocks(ir) if block.heads}
    for odd in sorted(count for count in heads if count % tp):
        legal = [n for n in _DEGREES if all(count % n == 0 for count in heads)]
        remedy = f"tensor parallel {' or '.join(map(str, legal))}" if legal else "pipeline parallelism"
        yield Reason("tp_does_not_divide_heads", f"{odd} attention heads cannot be cut into {tp}", remedy)


def _kv_heads(ir: ModelIR, tp: int) -> Iterator[Reason]:
    heads = {block.state.kv_heads for block in _blocks(ir) if isinstance(block.state, FullKV)}
    for odd in sorted(count for count in heads if not _shared(count, tp)):
        legal = [n for n in _DEGREES if all(_shared(count, n) for count in heads) and not next(_heads(ir, n), None)]
        remedy = f"tensor parallel {' or '.join(map(str, legal))}" if legal else "pipeline parallelism"
        yield Reason(
            "tp_does_not_divide_kv_heads",
            f"{odd} heads of keys and values can neither be cut into {tp} nor repeated on them",
            remedy,
        )


def _shared(heads: int, tp: int) -> bool:
    return heads % tp == 0 if heads >= tp else tp % heads == 0


def _rows(ir: ModelIR, ranks: Ranks) -> Iterator[Reason]:
    """Feed-forwards, and experts that are cut; those in blocks of 4 bits are padded, FP8 blocks have rules of their own."""
    for block in _blocks(ir):
        for linear in block.linears:
            storage, cut = linear.storage, ranks.cut(linear)
            if linear.role not in _FEED_FORWARD or storage.block is not None or storage.expert_blocks:
                continue
            size = linear.in_features if linear.role is Role.DOWN else linear.out_features
            if size % cut:
                remedy = f"fewer cards, or {WHOLE_EXPERTS if linear.copies > 1 else 'pipeline parallelism'}"
                yield Reason("tp_does_not_divide_rows", f"{linear.name}: {size} cannot be cut into {cut}", remedy)


def _vocabulary(ir: ModelIR, tp: int) -> Iterator[Reason]:
    padded = math.ceil(ir.vocab_size / _PADDED) * _PADDED
    if padded % tp:
        message = f"a vocabulary of {padded:,} (padded to {_PADDED}) cannot be cut into {tp}"
        yield Reason("tp_does_not_divide_vocabulary", message, "fewer cards, or pipeline parallelism")


def _groups(ir: ModelIR, ranks: Ranks) -> Iterator[Reason]:
    for block in _blocks(ir):
        for linear in block.linears:
            group, cut = linear.storage.group_size, ranks.cut(linear)
            if cut == 1 or linear.storage.block is not None or linear.role not in (Role.O, Role.DOWN) or group <= 0:
                continue
            if math.ceil(linear.in_features / cut) % group:
                message = (
                    f"group size {group} does not divide {linear.name}'s {linear.in_features} inputs cut into {cut}"
                )
                remedy = "a smaller group size or fewer cards"
                remedy += f", or {WHOLE_EXPERTS}" if linear.copies > 1 else ""
                yield Reason("group_size_does_not_divide_shard", message, remedy)
