"""From a plan document to the launch of its engine."""

from __future__ import annotations

from passes.ir.model import ModelIR
from planner.plan.document import PlanDocument
from targets.engines.engine import find_engine
from targets.launch.request import Launch, LaunchRequest
from targets.workload import Workload


def launch(document: PlanDocument, ir: ModelIR, served_name: str) -> Launch:
    """Return how the engine that a plan chose is started on its result. `ir` describes the finished checkpoint.

    Raises InputError for an engine that is not known here, or that has no launch files.
    """
    request = launch_request(document, ir, served_name)
    return find_engine(request.engine).launch(request)


def launch_request(document: PlanDocument, ir: ModelIR, served_name: str) -> LaunchRequest:
    """Return what the launch files of a plan are asked to say."""
    chosen, asked = document.decision, document.spec.workload
    return LaunchRequest(
        engine=chosen.engine.name,
        version=chosen.engine.version,
        label=chosen.label,
        served_name=served_name,
        ir=ir,
        settings=chosen.settings.settings,
        workload=Workload(asked.context, asked.concurrency, asked.input_tokens, asked.output_tokens),
        kv_cache_bytes=round(chosen.memory.kv_cache.value),
        trust_remote_code=document.spec.trust_remote_code,
    )
