"""From a plan document to the launch of its engine, and from a result to the files of a launch target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from passes.errors import InputError
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from planner.plan.document import PlanDocument
from planner.plan.saved import PLAN, read_plan
from targets.engines.engine import find_engine
from targets.launch.request import Launch, LaunchFile, LaunchRequest
from targets.launch.target import find_launch_target


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


def target_files(result: Path, target: str) -> tuple[LaunchFile, ...]:
    """Return the files by which a launch target runs a finished result.

    Raises InputError where the folder is no result, or for an unknown target.
    """
    writer = find_launch_target(target)
    if not (result / PLAN).is_file():
        raise InputError(f"{result} is no finished result", remedy="name the folder that `optimize apply` made")
    started = launch(read_plan(result / PLAN), open_model(result).ir, result.resolve().name)
    return writer.files(started, result.resolve())
