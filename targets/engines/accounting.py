"""Turns a rank's terms into the answer: what is left for the cache, what it holds, whether it starts, and what would mend it."""

from __future__ import annotations

import math

from passes.errors import Reason, ReasonKind
from passes.ir.model import ModelIR
from targets.engines.engine import KVEstimate, Memory, MemoryEstimate
from targets.engines.kv_layout import Layout
from targets.quantity import Basis, Quantity
from targets.workload import Workload

_GIB = 1 << 30
#: Code of the reason that an engine starts but the workload's requests do not fit at once.
CONCURRENCY_DOES_NOT_FIT = "concurrency_does_not_fit"
#: Code of the reason that a context is longer than the model is made for.
BEYOND_MODEL = "context_beyond_model"


def gib(value: float) -> str:
    """Return the bytes as people read them."""
    return f"{value / _GIB:.2f} GiB"


def weights_quantity(ir: ModelIR, size: float, error: float, basis: Basis) -> Quantity:
    """Return the bytes of weights: within the engine's own error where files or their config say how they are stored, else assumed."""
    if ir.spread > error:
        return Quantity.relative(size, ir.spread, Basis.ASSUMED)
    return Quantity.relative(size, error, basis)


def kv_estimate(layout: Layout, available: Quantity, context: int, limit: int) -> KVEstimate:
    """Return what a memory holds: blocks are whole, so the interval's ends are counted like the value."""
    blocks = [layout.blocks(x) for x in (available.value, available.low, available.high)]
    tokens = [float(layout.tokens(b, context)) for b in blocks]
    requests = [layout.concurrency(b, context) if layout.groups else math.inf for b in blocks]
    return KVEstimate(
        bytes_per_token=layout.bytes_per_token(),
        bytes_per_sequence=layout.request_bytes(context),
        tokens=Quantity(tokens[0], tokens[1], tokens[2], available.basis),
        max_concurrency=Quantity(requests[0], requests[1], requests[2], available.basis),
        max_context=layout.longest(available.value, limit),
    )


def answer(
    memory: Memory,
    layout: Layout,
    ir: ModelIR,
    workload: Workload,
    *,
    reasons: tuple[Reason, ...] = (),
    notes: tuple[str, ...] = (),
) -> MemoryEstimate:
    """Return whether the engine starts at the asked context and serves the asked concurrency, and why not.

    `reasons`: what stops it before it serves, though the memory would do.
    """
    kv = kv_estimate(layout, memory.kv_cache, workload.context, max(ir.max_context, workload.context))
    needed = layout.request_bytes(workload.context) + (layout.block_bytes if layout.rules.null_block else 0)
    margin = Quantity(
        memory.kv_cache.value - needed,
        memory.kv_cache.low - needed,
        memory.kv_cache.high - needed,
        memory.kv_cache.basis,
    )
    beyond = _beyond_model(ir, workload.context)
    found = [*reasons, *beyond]
    if memory.kv_cache.value <= 0:
        found.append(
            Reason(
                "weights_do_not_fit",
                f"weights and overhead take {gib(memory.budget.value - memory.kv_cache.value)} of {gib(memory.budget.value)}",
                None,
                {"short_bytes": int(-memory.kv_cache.value)},
                ReasonKind.TOO_LARGE,
            )
        )
    elif not layout.starts(memory.kv_cache.value, workload.context):
        longest = kv.max_context
        remedy = f"context {longest:,} fits" if longest > 0 else None
        found.append(
            Reason(
                "does_not_fit",
                f"a context of {workload.context:,} needs {gib(needed)} of cache, {gib(max(0.0, memory.kv_cache.value))} is left",
                remedy,
                {"needed_bytes": needed, "available_bytes": int(memory.kv_cache.value), "max_context": longest},
                ReasonKind.TOO_LARGE,
            )
        )
    starts = (
        not reasons
        and not beyond
        and memory.kv_cache.value > 0
        and layout.starts(memory.kv_cache.value, workload.context)
    )
    wanted = workload.concurrency or 1
    serves = starts and kv.max_concurrency.value >= wanted
    if starts and not serves:
        found.append(
            Reason(
                CONCURRENCY_DOES_NOT_FIT,
                f"{wanted} requests of {workload.context:,} tokens asked, {kv.max_concurrency.value:.1f} fit at once",
                f"concurrency {int(kv.max_concurrency.value)} fits",
                {"asked": wanted, "fits": kv.max_concurrency.value},
                ReasonKind.TOO_LARGE,
            )
        )
    request = layout.request_bytes(workload.request_tokens)
    return MemoryEstimate(memory, kv, starts, serves, margin, tuple(found), (*ir.notes, *notes), request)


def _beyond_model(ir: ModelIR, context: int) -> tuple[Reason, ...]:
    """Refuse a context that the model is not made for. vLLM does (`_get_and_verify_max_len` in config/model.py); where an engine does not,
    nothing is known of what the model answers there.
    """
    own = ir.max_context
    if not 0 < own < context:
        return ()
    rotary = any(key in ir.config for key in ("rope_theta", "rope_scaling", "rope_parameters"))
    longer = ", unless YaRN in its config.json stretches it" if rotary else ""
    message = f"{ir.name} is made for {own:,} tokens{longer}: a context of {context:,} is asked"
    data = {"asked": context, "max_context": own}
    return (Reason(BEYOND_MODEL, message, f"context {own:,} is served", data, ReasonKind.TOO_LARGE),)
