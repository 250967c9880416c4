"""Makes a plan: opens the model, searches, and writes down what was chosen, why each other lost, and what it all rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from passes import chain
from passes.base import Pass
from passes.blocks.devices import AUTO
from passes.chain import missing, rewrite
from passes.errors import InputError, Reason, ReasonKind
from passes.ir.catalog import Published
from passes.ir.sources import Source, open_model
from passes.text.source import refuse_same_text
from planner.apply_cost import Effort, effort, no_effort
from planner.choice.alternatives import alternatives
from planner.choice.published import description
from planner.choice.rule import MAKING, making
from planner.choice.search import SearchResult, search
from planner.choice.served import with_highest_load
from planner.choice.verdict import GoalResult, Verdict, show
from planner.machine import computing
from planner.plan.codec import FORMAT_VERSION, to_json
from planner.plan.document import (
    ChosenPlan,
    IllegalKind,
    ParetoPlan,
    Places,
    PlanDocument,
    PlannedEngine,
    PlannedGoal,
    RejectedPlan,
    planned_settings,
    sealed,
)
from planner.plan.lock import lock, portable_spec
from planner.plan.stated import figures_alone, stated, whole_bytes
from planner.spec.parse import load_spec
from planner.spec.spec import QuantizeChoice, Spec
from targets.engines.engine import SpeedEstimate, find_engine
from targets.gpu import Gpu

if TYPE_CHECKING:
    from passes.steps.progress import Progress
    from planner.quality.trials import Trial


@dataclass(frozen=True)
class Plan:
    """A plan as a document with the live objects it was made from."""

    document: PlanDocument
    spec: Spec
    source: Source
    result: SearchResult

    @property
    def feasible(self) -> bool:
        """Whether a candidate meets all goals."""
        return self.document.chosen is not None


def plan(
    spec: Spec | str | Path,
    *,
    measure: Path | None = None,
    progress: Callable[[Progress], None] = lambda event: None,
    device: str = AUTO,
) -> Plan:
    """Choose for a spec. A plan is returned also when nothing meets the goals; `feasible` says so.

    `measure`: a work folder; the leading candidates are tried on a little text, and what they lose replaces what is expected.
    `device`: what computes here (`auto`, `cpu`, `cuda`, `cuda:1`): the candidates are tried there, and `apply` is forecast for it.
    """
    here = computing(device)
    file = None if isinstance(spec, Spec) else Path(spec)
    if not isinstance(spec, Spec):
        spec = load_spec(spec)
    refuse_same_text(spec.calibration.dataset, spec.evaluation.dataset)
    source = open_model(spec.model, revision=spec.revision, assume=spec.assume)
    source.require_readable()
    result = search(spec, source.ir)
    tried: dict[tuple[Pass, ...], Trial] = {}
    if measure is not None:
        from planner.quality.trials import trials

        tried = trials(spec, source, result, measure, progress, device)
        result = search(spec, source.ir, measured={passes: trial.quality for passes, trial in tried.items()})
    chosen = _resolved(result.chosen and with_highest_load(spec, result.gpu, result.chosen), source, tried)
    published = None if chosen is None else chosen.candidate.published
    served = source if published is None else _open_published(published, source)
    document = PlanDocument(
        format_version=FORMAT_VERSION,
        model=source.ir.name if published is None else published.id,
        weights=source.ir.weights,
        spec=portable_spec(spec),
        chosen=None if chosen is None else _chosen(spec, chosen, served, result, _where(here, result.gpu)),
        rejected=(
            *(RejectedPlan(v.candidate.label, tuple(map(stated, v.reasons))) for v in result.nearest()),
            *(RejectedPlan(name, (stated(reason),)) for name, reason in result.unweighed),
        ),
        alternatives=() if chosen else tuple(alternatives(spec, source.ir)),
        illegal=tuple(_illegal(reason, candidates) for reason, candidates in result.illegal),
        pareto=tuple(map(_pareto, result.pareto)),
        searched=result.searched,
        lock=lock(spec, served, _engine(chosen) if chosen else None),
        digest="",
        places=Places(
            _place(spec.model) if published is None else published.id,
            _place(spec.calibration.dataset),
            _place(spec.evaluation.dataset),
            None if file is None else str(file.resolve()),
            None if published is None else _place(spec.model),
        ),
    )
    return Plan(sealed(document), spec, source, result)


def _resolved(verdict: Verdict | None, source: Source, tried: Mapping[tuple[Pass, ...], Trial]) -> Verdict | None:
    """The chosen verdict with the choices that its trial made."""
    if verdict is None or verdict.candidate.passes not in tried:
        return verdict
    passes = tried[verdict.candidate.passes].passes
    return replace(verdict, candidate=replace(verdict.candidate, passes=passes), ir=rewrite(source.ir, passes))


def _open_published(made: Published, dense: Source) -> Source:
    """A published checkpoint, as the Hub has it; by the catalog's description where it does not answer."""
    try:
        return open_model(made.id)
    except InputError:
        served = description(dense.ir, made)
        assert served is not None
        return replace(dense, ir=served, kind="catalog", path=None, revision=None, has_weights=False, materializer=None)


def _place(name: str) -> str:
    """A file's or folder's absolute path; other names as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _where(here: Gpu, target: Gpu) -> tuple[Gpu, Gpu | None]:
    """What the effort of applying is forecast for: what computes here, and the plan's own device where that is another."""
    return here, None if target.name == here.name else target


def _chosen(
    spec: Spec, verdict: Verdict, served: Source, result: SearchResult, where: tuple[Gpu, Gpu | None]
) -> ChosenPlan:
    candidate, passes = verdict.candidate, verdict.candidate.passes
    lacking = list(missing(served.ir, passes))
    if not served.has_weights:
        lacking.append("the weights: only the description of the model is here")
    here, on_card = (None if device is None else _work(spec, served, verdict, device) for device in where)
    assert here is not None
    return ChosenPlan(
        engine=_engine(verdict),
        label=candidate.label,
        passes=tuple(to_json(chain.to_json(passes))),
        settings=planned_settings(candidate.settings),
        memory=whole_bytes(verdict.memory.memory),
        kv_cache=verdict.memory.kv,
        speed=_speed(verdict),
        quality=verdict.quality,
        goals=tuple(map(_goal, verdict.goals)),
        tensor_bytes=(rewrite(served.ir, passes) if candidate.published else verdict.ir).tensor_bytes,
        apply=here,
        state="resolved" if all(pass_.resolved for pass_ in passes) else "bounded",
        executable=not lacking,
        missing=tuple(lacking),
        notes=(*_cautions(spec, verdict), *_chosen_numbers(spec, verdict, result), *verdict.notes),
        apply_on_card=on_card,
        why=result.why,
        weights=_weights(spec, verdict),
        kv_cache_dtype=verdict.ir.kv_cache.dtype,
        published=candidate.published.id if candidate.published else None,
        capacity=verdict.capacity,
        fit_odds=round(verdict.capacity.odds, 4),
    )


def _weights(spec: Spec, verdict: Verdict) -> str:
    """The weights as `check --weights` takes them: of a published checkpoint `as-is`, or the format that the spec asked for by name."""
    made, choice = verdict.candidate.published, spec.passes.quantize
    asked = made is not None and isinstance(choice, QuantizeChoice) and choice.formats is not None
    return made.weights if made is not None and asked else verdict.candidate.weights


def _cautions(spec: Spec, verdict: Verdict) -> Iterator[str]:
    """What a person must know before they sign: odds below the confidence, an archived engine, clients that wait, more than one machine."""
    goals, parallel = spec.goals, verdict.candidate.settings.parallel
    if not verdict.admissible(goals):
        least = min(verdict.odds)
        yield (
            f"no candidate reaches the confidence asked for ({goals.confidence:.0%}, fit {goals.fit_confidence:.0%}); "
            f"of those that come into question this one has the best odds, {least:.0%} in the least likely"
        )
    if (archived := find_engine(verdict.candidate.engine).archived) is not None:
        yield f"{archived}; it is planned when asked for, or when nothing else serves"
    if verdict.capacity.waiting:
        yield f"{verdict.capacity.running} of {verdict.capacity.clients} requests run at once, the others wait: TTFT holds their wait"
    node = spec.target.node
    if parallel.gpus > node:
        machines = -(-parallel.gpus // node)
        inside = "tensor parallelism stays inside one; start it on each (Ray or a launcher)"
        yield f"{parallel.gpus} cards are {machines} machines of {node}: {inside}"


def _chosen_numbers(spec: Spec, verdict: Verdict, result: SearchResult) -> Iterator[str]:
    """What was chosen that the spec left open: how many clients, how many cards, and what fewer of those would miss."""
    capacity, parallel, speed = verdict.capacity, verdict.candidate.settings.parallel, verdict.shown
    if spec.workload.concurrency == "auto" and speed is not None:
        each = f", {capacity.at_once} on each replica (max_num_seqs)" if parallel.dp > 1 else " (max_num_seqs)"
        rate, first = show(speed.throughput_tok_s.value, "tok/s"), show(speed.ttft_ms.value, "ms")
        own = show(speed.decode_tok_s_per_request.value, "tok/s")
        yield f"clients were left open: {capacity.clients} at once{each} give {rate} in all, {own} each, a first token after {first}"
    if spec.target.fewest and (fewer := result.with_fewer_cards()) is not None:
        missed = [goal.reason().message for goal in fewer.goals if not goal.met]
        told = [reason.message for reason in fewer.reasons if reason.kind is not ReasonKind.DOMINATED]
        misses = "; ".join(told or missed) or f"odds of {min(fewer.odds):.0%}"
        cards = "1 card" if fewer.candidate.cards == 1 else f"{fewer.candidate.cards} cards"
        yield f"{parallel.gpus} cards are the fewest: with {cards} the nearest is {fewer.candidate.label}: {misses}"


def _work(spec: Spec, served: Source, verdict: Verdict, device: Gpu) -> Effort:
    if making(verdict) == 0:
        return no_effort(device)
    work = effort(spec, served.ir, verdict.ir, verdict.candidate.passes, device)
    return replace(work, steps={name: round(seconds, 1) for name, seconds in work.steps.items()})


def _goal(result: GoalResult) -> PlannedGoal:
    goal = result.goal
    return PlannedGoal(
        goal,
        result.wanted,
        goal.unit,
        goal.at_most,
        result.met,
        result.predicted,
        round(result.odds, 4),
        result.statistic,
    )


def _engine(verdict: Verdict) -> PlannedEngine:
    """The engine, and the version that was asked, else the newest one known."""
    known = find_engine(verdict.candidate.engine).known_versions()
    return PlannedEngine(verdict.candidate.engine, verdict.candidate.settings.version or (known[-1] if known else None))


def _pareto(verdict: Verdict) -> ParetoPlan:
    memory = whole_bytes(verdict.memory.memory)
    return ParetoPlan(
        verdict.candidate.label, memory, verdict.memory.kv, _speed(verdict), verdict.quality, MAKING[making(verdict)],
        verdict.candidate.settings.parallel.gpus,
    )  # fmt: skip


def _speed(verdict: Verdict) -> SpeedEstimate | None:
    return None if verdict.shown is None else figures_alone(verdict.shown)


def _illegal(reason: Reason, candidates: int) -> IllegalKind:
    said = stated(reason)
    return IllegalKind(said.code, said.message, said.remedy, said.data, candidates=candidates)
