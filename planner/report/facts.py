"""What a report is about: a plan, its result where there is one, and what only the model itself can add to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from passes.errors import TightfitError
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.record import dataclass
from planner.asked import rewrite
from planner.certificate import NAME, Certificate, read_certificate, result_folder
from planner.choice.demand import target_gpu
from planner.choice.search import search
from planner.choice.verdict import Verdict
from planner.plan.document import PlanDocument, asked_spec, spec_of
from planner.plan.lock import staleness
from planner.plan.parts.locked import Places
from planner.plan.saved import PLAN, load_plan, read_plan
from planner.verifying.report import VerifyReport, read_report
from targets.engines.engine import SpeedEstimate, find_engine
from targets.gpu import Gpu
from targets.serve.load import LoadTiming
from targets.workload import Workload

#: Requests at once, or shares of the rate asked for, of which the latency is drawn: in multiples of what is asked.
_AROUND = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
#: Clients that are drawn at most: a simulation of more takes seconds, and says what the curve shows before.
_MOST_CLIENTS = 256


@dataclass(frozen=True, slots=True)
class Loaded:
    """What users see at one load: so many clients in a closed loop, or so many requests a second."""

    load: float
    speed: SpeedEstimate


@dataclass(frozen=True)
class Facts:
    """`verdicts`: every design that was weighed; empty where the plan alone is here. `ir`: of the served checkpoint, None where it is not
    known. `loads`: what is simulated, by rising load. `notes`: what is missing of these, and why. `verified`: what its engine showed.
    """

    plan: PlanDocument
    certificate: Certificate | None = None
    verified: VerifyReport | None = None
    verdicts: tuple[Verdict, ...] = ()
    ir: ModelIR | None = None
    loads: tuple[Loaded, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def timing(self) -> LoadTiming | None:
        """Return what the load that the plan is made for showed; None where none, or another one, was put on."""
        if self.verified is None or self.plan.chosen is None or not self.verified.loads:
            return None
        asked, needs, first = self.plan.spec.workload.asked, self.plan.chosen.capacity, self.verified.loads[0]
        clients = asked.concurrency or (needs.clients if needs else 1)
        return first if first.load.rate == asked.rate and first.load.concurrency == clients else None


def facts_of(path: Path) -> Facts:
    """Gather what is known of a plan or a result. Raises InputError where the path is neither."""
    if result_folder(path) or path.name == NAME:
        folder = path if path.is_dir() else path.parent
        return _of_result(read_plan(folder / PLAN), read_certificate(folder / NAME), folder)
    return _of_plan(load_plan(path))


def _of_plan(plan: PlanDocument) -> Facts:
    """Search again, for what the plan does not keep of its candidates. A plan that is stale is told of as it was made."""
    if plan.places is None:
        return Facts(plan, notes=("the plan has left the place it was made at: candidates are those that it keeps",))
    if moved := staleness(plan):
        return Facts(plan, notes=(f"the plan is stale ({'; '.join(moved)}): candidates are those that it keeps",))
    spec = asked_spec(plan)
    source = open_model(spec.model, revision=spec.revision, assume=spec.assume)
    result = search(spec, source.ir)
    now, then = result.chosen, plan.chosen
    if (now and now.candidate.label) != (then and then.label):
        notes = ("the plan was chosen with measurements: candidates are those that it keeps",)
        made = None if then is None or then.published else rewrite(source.ir, then.chain)[0]
        return _with_loads(Facts(plan, ir=made, notes=notes), result.gpu)
    verdicts = (*((now,) if now else ()), *result.rejected)
    served = None if now is None or then is None else now.ir if then.published else rewrite(source.ir, then.chain)[0]
    return _with_loads(Facts(plan, verdicts=verdicts, ir=served), result.gpu)


def _of_result(plan: PlanDocument, certificate: Certificate, folder: Path) -> Facts:
    """What the finished checkpoint says of itself: it lies here, whatever became of the model it was made from."""
    notes = ["candidates are those that the result's plan keeps"]
    if (verified := read_report(folder)) is None:
        notes.append("speed is predicted: `optimize verify` measures it")
    facts = Facts(plan, certificate, verified, notes=tuple(notes))
    texts = plan.spec
    here = replace(plan, places=Places(str(folder), texts.calibration.dataset, texts.evaluation.dataset))
    try:
        gpu, ir = target_gpu(spec_of(here)), open_model(str(folder)).ir
    except TightfitError as error:
        return replace(facts, notes=(*facts.notes, f"the checkpoint cannot be read: {error.message}"))
    return _with_loads(replace(facts, ir=ir), gpu)


def _with_loads(facts: Facts, gpu: Gpu) -> Facts:
    """The load of the plan simulated, and less and more of it."""
    chosen, ir = facts.plan.chosen, facts.ir
    if chosen is None or ir is None:
        return facts
    engine, asked = find_engine(chosen.engine.name), facts.plan.spec.workload.asked
    settings = chosen.settings.settings
    if engine.queue(gpu, settings, asked, chosen.kv_cache) is None:
        return replace(facts, notes=(*facts.notes, f"the scheduler of {engine.name} is not simulated"))
    loads = []
    for workload in _around(asked):
        memory = engine.memory(ir, gpu, settings, workload)
        speed = engine.served(ir, gpu, settings, workload, memory)
        loads.append(Loaded(float(workload.rate or workload.concurrency or 1), speed))
    return replace(facts, loads=tuple(loads))


def _around(asked: Workload) -> list[Workload]:
    """The workload with fewer and with more clients, or with its rate."""
    if asked.trace is not None or asked.rate == float("inf"):
        return [asked]
    if asked.rate is not None:
        return [replace(asked, rate=asked.rate * share) for share in _AROUND]
    own = asked.concurrency or 1
    clients = {max(1, round(own * share)) for share in _AROUND}
    clients |= {own} | ({2, 4, 8} if own < 4 else set())
    kept = sorted(count for count in clients if count <= max(_MOST_CLIENTS, own))
    return [replace(asked, concurrency=count, requests=None) for count in kept]
