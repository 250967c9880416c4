"""What a spec asks for, as engines take it: the card, the load, what users are promised."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from passes.errors import NotModelledError
from targets.gpu import Gpu, find_gpu, inline_gpu, installed_gpu
from targets.workload import Limit, Workload

if TYPE_CHECKING:
    from planner.spec.parts.goals import Goals
    from planner.spec.spec import Spec


def target_gpu(spec: Spec) -> Gpu:
    """Return the card of a spec. `auto` is this machine's first card, or its processor. Raises NotModelledError for other makers'
    cards.
    """
    asked = spec.target.gpu
    if not isinstance(asked, str):
        return replace(inline_gpu(asked.model_dump(exclude_none=True)), network=spec.target.network)
    gpu = installed_gpu() if asked == "auto" else find_gpu(asked)
    if gpu.vendor not in ("NVIDIA", "CPU"):
        raise NotModelledError(
            f"{gpu.name}: engines on {gpu.vendor} cards are not modelled", remedy="choose an NVIDIA card"
        )
    bridge = gpu.bridge if gpu.bridge is None else spec.target.bridge
    return replace(gpu, network=spec.target.network, bridge=bridge)


def workload_of(spec: Spec) -> Workload:
    """Return the workload of a spec."""
    return spec.workload.asked


def asks_speed(spec: Spec) -> bool:
    """Tell whether something is asked of a candidate's speed: by a goal, or by requests that go on arriving."""
    return spec.goals.asks_speed or workload_of(spec).lasts


def limits_of(goals: Goals) -> tuple[Limit, ...]:
    """Return what users are promised by the goals on a request's own speed."""
    out = [Limit(name, statistic, 1e3 * seconds) for name, statistic, seconds in goals.times]
    if goals.decode:
        out.append(Limit("tpot", "mean", 1e3 / goals.decode))
    return tuple(out)
