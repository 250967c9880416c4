"""What to change so that a model fits, found by trying: for each knob alone the smallest change that does; where no format of the
weights does at the asked context, the first that does at a shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from passes.ir.model import ModelIR
from planner.asked import chain_of, rewrite
from targets.engines.engine import Engine, Settings
from targets.gpu import Gpu
from targets.workload import Workload

#: A context shorter than this is no answer to somebody who asked for more.
_USEFUL_CONTEXT = 2048
#: Formats tried in the order of expected loss, smallest change first.
_FORMATS = ("fp8", "w8a8", "w4a16-g128", "w4a16-g64", "w4a16-g32")
_UTILIZATIONS = (0.92, 0.94, 0.96, 0.98)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One change that would make a model fit: the option to change, the change in words, and the values to give."""

    knob: str
    message: str
    concurrency: int | None = None
    kv_cache_dtype: str | None = None
    gpu_memory_utilization: float | None = None
    gpus: int | None = None
    weights: str | None = None
    context: int | None = None


@dataclass(frozen=True, slots=True)
class Misfit:
    """What does not fit: a model as it was asked for (`ir`), the dense one that it was made of, and where and how it would run."""

    engine: Engine
    dense: ModelIR
    ir: ModelIR
    gpu: Gpu
    settings: Settings
    workload: Workload

    def fits(self, model: ModelIR, settings: Settings, workload: Workload) -> bool:
        """Whether a model would be served with these settings, or would start where no concurrency is asked for."""
        estimate = self.engine.memory(model, self.gpu, settings, workload)
        served = estimate.serves if workload.concurrency else estimate.starts
        return served and not self.engine.illegal(model, self.gpu, settings)


def remedies(misfit: Misfit, *, may_quantize: bool) -> tuple[Remedy, ...]:
    """Return one remedy a knob; empty where no single change helps."""
    return tuple(_tried(misfit, may_quantize))


def _tried(misfit: Misfit, may_quantize: bool) -> Iterator[Remedy]:
    fits, ir, gpu, settings, workload = misfit.fits, misfit.ir, misfit.gpu, misfit.settings, misfit.workload
    estimate = misfit.engine.memory(ir, gpu, settings, workload)
    context = min(
        workload.context - 1,
        _longest(lambda n: fits(ir, settings, replace(workload, context=n)), estimate.kv.max_context),
    )
    if context >= 256:
        yield Remedy(knob="context", message=f"context {context:,} fits", context=context)
    if workload.concurrency and workload.concurrency > 1:
        at_once = int(estimate.kv.max_concurrency.value)
        if at_once >= 1 and fits(ir, settings, replace(workload, concurrency=at_once)):
            yield Remedy(knob="concurrency", message=f"concurrency {at_once} fits", concurrency=at_once)
    if ir.kv_cache.dtype == "auto":
        small, illegal = rewrite(ir, chain_of(None, "fp8"))
        if not illegal and fits(small, settings, workload):
            yield Remedy(knob="kv_cache_dtype", message="--kv-cache-dtype fp8 fits", kv_cache_dtype="fp8")
    for utilization in _UTILIZATIONS:
        changed = replace(settings, gpu_memory_utilization=utilization)
        if not gpu.is_cpu and utilization > (settings.gpu_memory_utilization or 0) and fits(ir, changed, workload):
            message = f"--gpu-memory-utilization {utilization} fits"
            yield Remedy(knob="gpu_memory_utilization", message=message, gpu_memory_utilization=utilization)
            break
    for tp in (2, 4, 8, 16):
        changed = replace(settings, parallel=replace(settings.parallel, tp=tp))
        if not gpu.is_cpu and tp > settings.parallel.tp and fits(ir, changed, workload):
            yield Remedy(knob="gpus", message=f"{changed.parallel.gpus} cards fit", gpus=changed.parallel.gpus)
            break
    smaller = [(name, rewrite(misfit.dense, chain_of(name, ir.kv_cache.dtype))) for name in _FORMATS if may_quantize]
    legal = [(name, model) for name, (model, illegal) in smaller if not illegal]
    for name, model in legal:
        if fits(model, settings, workload):
            yield Remedy(knob="weights", message=f"--weights {name} fits", weights=name)
            return
    for name, model in legal:
        longest = _longest(lambda n, model=model: fits(model, settings, replace(workload, context=n)), workload.context)  # type: ignore[misc]
        if longest >= _USEFUL_CONTEXT:
            message = f"--weights {name} with --context {longest} fits"
            yield Remedy(knob="weights", message=message, weights=name, context=longest)
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
