"""What to change so that a model fits, found by trying: for each knob alone the smallest change that does; where no format of the
weights does at the asked context, the first that does at a shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from passes.errors import Reason
from passes.ir.model import ModelIR
from planner.asked import chain_of, rewrite
from targets.engines.engine import Engine, MemoryEstimate, Settings
from targets.gpu import Gpu
from targets.workload import Workload

#: A context shorter than this is no answer to somebody who asked for more.
_USEFUL_CONTEXT = 2048
#: Formats tried in the order of expected loss, smallest change first.
_FORMATS = ("fp8", "w8a8", "w4a16-g128", "w4a16-g64", "w4a16-g32")
_UTILIZATIONS = (0.92, 0.94, 0.96, 0.98)


def remedies(
    engine: Engine, dense: ModelIR, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, *, may_quantize: bool
) -> tuple[Reason, ...]:
    """One `Reason` a knob, its message saying the change; empty where no single change helps."""

    def fits(model: ModelIR, changed: Settings, asked: Workload) -> bool:
        estimate: MemoryEstimate = engine.memory(model, gpu, changed, asked)
        served = estimate.serves if asked.concurrency else estimate.starts
        return served and not engine.illegal(model, gpu, changed)

    return tuple(_each(engine, dense, ir, gpu, settings, workload, may_quantize, fits))


def _each(
    engine: Engine,
    dense: ModelIR,
    ir: ModelIR,
    gpu: Gpu,
    settings: Settings,
    workload: Workload,
    may_quantize: bool,
    fits: Callable[[ModelIR, Settings, Workload], bool],
) -> Iterator[Reason]:
    estimate = engine.memory(ir, gpu, settings, workload)
    context = min(
        workload.context - 1,
        _longest(lambda n: fits(ir, settings, replace(workload, context=n)), estimate.kv.max_context),
    )
    if context >= 256:
        yield Reason("context", f"context {context:,} fits", None, {"context": context})
    if workload.concurrency and workload.concurrency > 1:
        at_once = int(estimate.kv.max_concurrency.value)
        if at_once >= 1 and fits(ir, settings, replace(workload, concurrency=at_once)):
            yield Reason("concurrency", f"concurrency {at_once} fits", None, {"concurrency": at_once})
    if ir.kv_cache.dtype == "auto":
        small, illegal = rewrite(ir, chain_of(None, "fp8"))
        if not illegal and fits(small, settings, workload):
            yield Reason("kv_cache_dtype", "--kv-cache-dtype fp8 fits", None, {"kv_cache_dtype": "fp8"})
    for utilization in _UTILIZATIONS:
        changed = replace(settings, gpu_memory_utilization=utilization)
        if not gpu.is_cpu and utilization > (settings.gpu_memory_utilization or 0) and fits(ir, changed, workload):
            message = f"--gpu-memory-utilization {utilization} fits"
            yield Reason("gpu_memory_utilization", message, None, {"gpu_memory_utilization": utilization})
            break
    for tp in (2, 4, 8, 16):
        changed = replace(settings, parallel=replace(settings.parallel, tp=tp))
        if not gpu.is_cpu and tp > settings.parallel.tp and fits(ir, changed, workload):
            yield Reason("gpus", f"{changed.parallel.gpus} cards fit", None, {"gpus": changed.parallel.gpus})
            break
    smaller = [(name, rewrite(dense, chain_of(name, ir.kv_cache.dtype))) for name in _FORMATS if may_quantize]
    legal = [(name, model) for name, (model, illegal) in smaller if not illegal]
    for name, model in legal:
        if fits(model, settings, workload):
            yield Reason("weights", f"--weights {name} fits", None, {"weights": name})
            return
    for name, model in legal:
        longest = _longest(lambda n, model=model: fits(model, settings, replace(workload, context=n)), workload.context)  # type: ignore[misc]
        if longest >= _USEFUL_CONTEXT:
            message = f"--weights {name} with --context {longest} fits"
            yield Reason("weights", message, None, {"weights": name, "context": longest})
            return


def _longest(fits: Callable[[int], bool], limit: int) -> int:
    """The longest context that fits, in steps of 256 tokens; the limit itself where that fits."""
    if limit > 0 and fits(limit):
        return limit
    low, high = 0, limit // 256
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * 256) else (low, middle - 1)
    return low * 256
