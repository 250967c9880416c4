"""Where the blocks of FP8 scales may lie so that vLLM can load them: no two parts of a fused matrix and no two cards share one.

Source: `validate_fp8_block_shape` and `validate_fp8_block_shape_moe` of vLLM 0.32 (quantization/utils/fp8_utils.py); of publishers' experts
smaller blocks are made where that helps (`fused_moe/oracle/fp8.py:refine_fp8_moe_block_shape`, from 0.29; only Triton's kernels take them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

from passes.errors import Reason
from passes.formats.published import Published
from passes.ir.fused import fused
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.ir.state import FullKV, LayerState
from targets.engines.engine import Parallel
from targets.engines.resident_weights import Ranks, local_shape
from targets.engines.vllm.rules.shards import WHOLE_EXPERTS
from targets.engines.vllm.rules.versions import Rules

#: Matrices whose rows tensor parallelism cuts; mixers' are cut in parts of their own, which are not looked at.
_CUT_BY_OUTPUT = (Role.Q, Role.K, Role.V, Role.QKV, Role.Q_UP, Role.KV_UP, Role.GATE, Role.UP, Role.GATE_UP)


#: The smallest block that scales are refined to, and the compute capability × 10 whose Triton kernels multiply FP8.
_FINEST, _TRITON = 32, 89


def fp8_block_reasons(ir: ModelIR, parallel: Parallel, rules: Rules, capability: int) -> list[Reason]:
    """Refuse blocks of FP8 scales that two parts of a fused matrix, or two cards, would have to share.

    Every part of a fused matrix but the last holds whole blocks of rows, the last one too where the rows are cut by tensor
    parallelism. Every card holds whole blocks of the inputs of a matrix that is cut by them. Experts' gates and ups hold whole
    blocks always.
    """
    ranks = Ranks.of(parallel)
    refines = rules.refines_experts and capability >= _TRITON and ir.quant_method == "fp8"
    found = (_straddling(block, ranks, refines) for block, _ in ir.decoder.counts)
    return [reason for reason in found if reason is not None][:1]


@lru_cache(maxsize=1 << 14)
def _straddling(block: Block, ranks: Ranks, refines: bool) -> Reason | None:
    for linear, what, size, whole in _in_whole_blocks(block, ranks):
        if size % whole and not (refines and linear.copies > 1 and _refined(linear, ranks)):
            cards = ranks.cut(linear)
            where = f" on each of {cards} cards" if cards > 1 else ""
            message = f"{size} {what} of {linear.name}{where} are not whole blocks of {whole}, which vLLM needs"
            remedies = [] if isinstance(linear.storage, Published) else ["fp8 (a scale an output channel)"]
            remedies += ["fewer cards"] if cards > 1 else []
            remedies += [WHOLE_EXPERTS] if cards > 1 and linear.copies > 1 else []
            remedy = ", or ".join(remedies) or "the dense model that it was made from"
            return Reason("fp8_block_does_not_divide_part", message, remedy, {"size": size, "block": whole})
    return None


def _refined(linear: Linear, ranks: Ranks) -> bool:
    """Whether smaller blocks divide a rank's share of an expert."""
    sides = linear.in_features, linear.out_features
    inner, hidden = sides if linear.role is Role.DOWN else sides[::-1]
    inner //= 2 if linear.role is Role.GATE_UP else 1
    return math.gcd(*(linear.storage.block or (1, 1)), inner // ranks.cut(linear), hidden) >= _FINEST


def _in_whole_blocks(block: Block, ranks: Ranks) -> Iterator[tuple[Linear, str, int, int]]:
    """(matrix, `rows` or `inputs`, how many one card holds, the block that must divide them)."""
    for members in fused(block):
        shape, first = members[0].storage.block, members[0]
        if shape is None:
            continue
        if ranks.cut(first) > 1 and first.role in (Role.O, Role.DOWN):
            yield from ((lin, "inputs", local_shape(lin, ranks, block.state)[1], shape[1]) for lin in members)
        parts = [(lin, rows) for lin in members for rows in _parts(lin, ranks, block.state)]
        cut = ranks.cut(first) > 1 and first.role in _CUT_BY_OUTPUT
        if first.copies > 1:
            parts = [] if first.role is Role.DOWN else parts
        elif isinstance(first.storage, Published) and len(parts) > 1:
            # vLLM takes publishers' files (`quant_method: fp8`) as they are: `_maybe_allow_fp8_block_shape_mismatch` in linear.py.
            parts = []
        elif not cut:
            parts = parts[:-1]
        yield from ((lin, "rows", rows, shape[0]) for lin, rows in parts)


def _parts(linear: Linear, ranks: Ranks, state: LayerState) -> tuple[int, ...]:
    """Rows of each matrix that a stored one holds, on one card."""
    rows, _, _ = local_shape(linear, ranks, state)
    if linear.role is Role.GATE_UP:
        return rows // 2, rows - rows // 2
    if linear.role is Role.QKV and isinstance(state, FullKV):
        heads = max(1, state.kv_heads // ranks.tp)
        keys, values = heads * state.head_dim, heads * state.v_head_dim
        return rows - keys - values, keys, values
    return (rows,)
