"""Turns a rank's terms into the answer: what is left for the cache, what it holds, whether it starts, and what would mend it."""

from __future__ import annotations

import math

from passes.errors import Reason, ReasonKind
from passes.ir.architectures import names_context
from passes.ir.model import ModelIR
from targets.engines.engine import KVEstimate, Memory, MemoryEstimate
from targets.engines.kv_layout import Layout
from targets.figures import apart
from targets.quantity import Basis, Quantity
from targets.workload import Workload

_GIB = 1 << 30
#: Code of the reason that an engine starts but the workload's requests do not fit at once.
CONCURRENCY_DOES_NOT_FIT = "concurrency_does_not_fit"
#: Code of the reason that a context is longer than the model is made for.
BEYOND_MODEL = "context_beyond_model"


def weights_quantity(ir: ModelIR, size: float, error: float, basis: Basis) -> Quantity:
    """Return the bytes of weights: within the engine's own error where files or their config say how they are stored, else assumed."""
    if ir.spread > error:
        return Quantity.relative(size, ir.spread, Basis.ASSUMED)
    return Quantity.relative(size, error, basis)


def kv_estimate(layout: Layout, available: Quantity, context: int, limit: int) -> KVEstimate:
    """Return what a memory holds: blocks are whole, so the interval's ends are counted like the value."""
    blocks = [layout.blocks(x) for x in (available.value, available.low, available.high)]
    tokens = [float(layout.tokens(b, context)) for b in blocks]
    window_bytes, window_tokens = layout.windows()
    requests = [layout.concurrency(b, context) if layout.groups else math.inf for b in blocks]
    return KVEstimate(
        bytes_per_token=layout.bytes_per_token(),
        bytes_per_sequence=layout.request_bytes(context),
        tokens=Quantity(tokens[0], tokens[1], tokens[2], available.basis),
        max_concurrency=Quantity(requests[0], requests[1], requests[2], available.basis),
        max_context=layout.longest(available.value, limit),
        window_bytes_per_token=window_bytes,
        window_tokens=window_tokens,
        state_bytes=layout.state_bytes(),
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
    cache = memory.kv_cache
    margin = Quantity(cache.value - needed, cache.low - needed, cache.high - needed, cache.basis)
    stopped = (
        *reasons,
        *_beyond_model(ir, workload.context),
        *_shortage(memory, layout, workload, needed, kv.max_context),
    )
    crowded = () if stopped else _crowding(kv, workload)
    request = layout.request_bytes(workload.request_tokens)
    return MemoryEstimate(
        memory, kv, not stopped, not (stopped or crowded), margin, (*stopped, *crowded), (*ir.notes, *notes), request
    )


def _shortage(memory: Memory, layout: Layout, workload: Workload, needed: int, longest: int) -> tuple[Reason, ...]:
    """What there is no memory for: the weights, or the cache of one request, `needed` bytes; `longest`: the context that fits."""
    left = memory.kv_cache.value
    if left <= 0:
        taken, budget = _gib_apart(memory.budget.value - left, memory.budget.value)
        message = f"weights and overhead take {taken} of {budget}"
        return (Reason("weights_do_not_fit", message, None, {"short_bytes": int(-left)}, ReasonKind.TOO_LARGE),)
    if layout.starts(left, workload.context):
        return ()
    needs, there = _gib_apart(needed, left)
    message = f"a context of {workload.context:,} needs {needs} of cache, {there} is left"
    remedy = f"context {longest:,} fits" if longest > 0 else None
    data = {"needed_bytes": needed, "available_bytes": int(left), "max_context": longest}
    return (Reason("does_not_fit", message, remedy, data, ReasonKind.TOO_LARGE),)


def _gib_apart(needed: float, left: float) -> tuple[str, str]:
    """Both sizes in GiB, with as many digits as tell them apart."""
    return apart(needed / _GIB, left / _GIB, "GiB")


def _crowding(kv: KVEstimate, workload: Workload) -> tuple[Reason, ...]:
    """More requests than the cache holds at once."""
    wanted, fits = workload.concurrency or 1, kv.max_concurrency.value
    if fits >= wanted:
        return ()
    shown = f"{fits:.1f}" if round(fits, 1) < wanted else apart(wanted, fits, "")[1]
    message = f"{wanted} requests of {workload.context:,} tokens asked, {shown} fit at once"
    data = {"asked": wanted, "fits": fits}
    return (Reason(CONCURRENCY_DOES_NOT_FIT, message, f"concurrency {int(fits)} fits", data, ReasonKind.TOO_LARGE),)


def _beyond_model(ir: ModelIR, context: int) -> tuple[Reason, ...]:
    """Refuse a context that the model is not made for. vLLM does (`_get_and_verify_max_len` in config/model.py); where an engine does not,
    nothing is known of what the model answers there.
    """
    own = ir.max_context
    if not 0 < own < context or not names_context(ir.config):
        return ()
    rotary = any(key in ir.config for key in ("rope_theta", "rope_scaling", "rope_parameters"))
    longer = ", unless YaRN in its config.json stretches it" if rotary else ""
    message = f"{ir.name} is made for {own:,} tokens{longer}: a context of {context:,} is asked"
    data = {"asked": context, "max_context": own, "rotary": rotary}
    return (Reason(BEYOND_MODEL, message, f"context {own:,} is served", data, ReasonKind.TOO_LARGE),)
