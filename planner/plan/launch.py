"""From a plan to the launch of its engine, and from a plan or a result to the files of launch targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from passes.errors import InputError
from passes.ir.model import ModelIR
from passes.record import dataclass
from planner.plan.document import PlanDocument
from planner.plan.opened import Opened, opened
from planner.spec.parts.target import Target
from targets.engines.engine import find_engine
from targets.gpu import find_gpu, inline_gpu
from targets.launch.deployment import Deployment
from targets.launch.request import Hardware, Launch, LaunchFile, LaunchRequest, Served
from targets.launch.target import LAUNCH_TARGETS, find_launch_target

#: What names all targets at once.
ALL = "all"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A launch target that cannot run a server, and why."""

    target: str
    message: str


def launch(document: PlanDocument, ir: ModelIR, served_name: str) -> Launch:
    """Return how the engine that a plan chose is started on its result. `ir` describes the finished checkpoint.

    Raises InputError for an engine that is not known here, or that has no launch files.
    """
    request = launch_request(document, ir, served_name)
    return find_engine(request.engine).launch(request)


def launch_request(document: PlanDocument, ir: ModelIR, served_name: str) -> LaunchRequest:
    """Return what the launch files of a plan are asked to say."""
    chosen, workload = document.decision, document.spec.workload.asked
    if workload.concurrency is None and chosen.capacity is not None:
        workload = replace(workload, concurrency=chosen.capacity.at_once)
    return LaunchRequest(
        engine=chosen.engine.name,
        version=chosen.engine.version,
        label=chosen.label,
        served_name=served_name,
        ir=ir,
        settings=chosen.settings.settings,
        workload=workload,
        kv_cache_bytes=round(chosen.memory.kv_cache.value),
        trust_remote_code=document.spec.trust_remote_code,
    )


def deployed(what: Path) -> Deployment:
    """Return the server that a result's folder or a saved plan describes.

    A plan that leaves the checkpoint as it is names its source; one that makes another names the folder that `apply` will write. Raises
    InputError where it is neither.
    """
    plan = opened(what)
    made = what.is_dir() and plan.document.places is None
    return of_result(plan.document, what.resolve(), plan.ir) if made else of_plan(plan, what)


def of_result(document: PlanDocument, folder: Path, ir: ModelIR) -> Deployment:
    """Return the server of a finished result in `folder`, which `ir` describes."""
    request = launch_request(document, ir, folder.name)
    return _deployment(document, request, Served(folder.name, folder, bytes=ir.tensor_bytes))


def of_plan(plan: Opened, path: Path) -> Deployment:
    """Return the server of a plan that is saved at `path`: of its source where there is nothing to make, else of what `apply` will make."""
    document, chosen, source = plan.document, plan.document.decision, Path(plan.spec.model)
    if not chosen.nothing_to_make:
        folder = Path(f"{path.name.removesuffix('.json').removesuffix('.plan')}-tightfit").resolve()
        request = launch_request(document, plan.ir, folder.name)
        return _deployment(document, request, Served(folder.name, folder, bytes=chosen.tensor_bytes, planned=True))
    if source.exists():
        served = Served(source.name, source.resolve(), bytes=chosen.tensor_bytes)
    else:
        served = Served(document.model, None, document.lock.revision, chosen.tensor_bytes)
    request = replace(launch_request(document, plan.ir, document.model.rsplit("/", 1)[-1]), served=served)
    return _deployment(document, request, served)


def _deployment(document: PlanDocument, request: LaunchRequest, served: Served) -> Deployment:
    started = find_engine(request.engine).launch(request)
    return Deployment(request, started, served, _hardware(document), document.digest)


def _hardware(document: PlanDocument) -> Hardware:
    """The cards in use, and the machines that they stand in."""
    chosen, lock = document.decision, document.lock.gpu
    if find_engine(chosen.engine.name).device == "cpu":
        return Hardware(lock.name, lock.memory_bytes, is_cpu=True)
    # A locked card may be one of a spec's own facts, which no list has.
    target = Target.model_validate({"gpu": lock.name, "count": lock.count, "nodes": document.spec.target.nodes})
    cards = chosen.settings.gpus
    return Hardware(lock.name, lock.memory_bytes, _capability(document), cards, math.ceil(cards / target.node))


def _capability(document: PlanDocument) -> int | None:
    """Compute capability × 10 of the planned card, where it is known."""
    asked = document.spec.target.gpu
    try:
        return (
            inline_gpu(asked).capability if isinstance(asked, Mapping) else find_gpu(document.lock.gpu.name).capability
        )
    except InputError:
        return None


def target_files(deployment: Deployment, targets: Sequence[str]) -> tuple[LaunchFile, ...]:
    """Return the files by which launch targets run a server.

    Raises InputError for an unknown target, and for one that cannot run it.
    """
    return tuple(file for name in targets for file in find_launch_target(name).files(deployment))


def every_target(deployment: Deployment) -> tuple[tuple[LaunchFile, ...], tuple[Refusal, ...]]:
    """Return the files of all targets that can run a server, and of each other one why it cannot."""
    files: list[LaunchFile] = []
    refused = []
    for name in LAUNCH_TARGETS.names(installed=True):
        try:
            files += find_launch_target(name).files(deployment)
        except InputError as error:
            refused.append(Refusal(name, error.message))
    return tuple(files), tuple(refused)


def launch_targets() -> tuple[tuple[str, str], ...]:
    """Return name and title of every launch target, those of other packages last."""
    return tuple((name, find_launch_target(name).title) for name in LAUNCH_TARGETS.names(installed=True))
