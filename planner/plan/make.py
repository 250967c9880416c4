"""Makes a plan: opens the model, searches, and writes down what was chosen, why each other lost, and what it all rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes import chain
from passes.base import Pass
from passes.chain import missing, rewrite
from passes.errors import InputError, ReasonKind
from passes.ir.model import ModelIR
from passes.ir.names import Published
from passes.ir.sources import Source, open_model
from passes.record import dataclass
from passes.text.source import refuse_same_text
from planner.choice.alternatives import alternatives
from planner.choice.judging.highest_load import with_highest_load
from planner.choice.rule.criteria import making
from planner.choice.rule.words import MAKING
from planner.choice.search import SearchResult, search
from planner.choice.space.published import description
from planner.choice.verdict import Verdict
from planner.machine import ALL_HERE, Computing, computing
from planner.plan.cautions import cautions, recovery, unheld, unjudged
from planner.plan.codec import FORMAT_VERSION, to_json
from planner.plan.document import PlanDocument, sealed
from planner.plan.effort import Effort
from planner.plan.lock import lock, portable_spec
from planner.plan.parts.chosen import ChosenPlan, PlannedEngine, planned_goal, planned_settings
from planner.plan.parts.locked import Places
from planner.plan.parts.others import IllegalKind, ParetoPlan, RejectedPlan
from planner.plan.remedies import followable, remedy
from planner.plan.saved import save
from planner.plan.stated import figures_alone, stated, whole_bytes
from planner.spec.arguments import called, file_named, optional_path, public, record
from planner.spec.parse import as_spec
from planner.spec.parts.choices import QuantizeChoice
from planner.spec.patch import written
from planner.spec.spec import Spec
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
        return self.chosen is not None

    @property
    def chosen(self) -> ChosenPlan | None:
        """What was chosen, with its memory, speed, quality and goals; None where nothing meets the goals."""
        return self.document.chosen

    def save(self, path: str | Path) -> Path:
        """Write the document to a file, as `optimize plan -o` does, and return where. Raises InputError where it cannot be written."""
        file = file_named("the file", path, "a path such as a.plan.json")
        save(self.document, file)
        return file


@public
def plan(
    spec: Spec | str | Path | Mapping[str, Any],
    *,
    measure: Path | None = None,
    progress: Callable[[Progress], None] = lambda event: None,
    on: Computing = ALL_HERE,
) -> Plan:
    """Choose for a spec: one, its file, or a mapping with its keys. A plan is returned also when nothing meets the goals: `feasible`.

    `measure`: a work folder; the leading candidates are tried on a little text, and what they lose replaces what is expected.
    `on`: what computes here, where `apply` is forecast for, and whose processes try the candidates.
    """
    measure = _measuring(measure)
    called("progress", progress)
    record("on", on, Computing)
    here = computing(on.device)
    file = Path(spec) if isinstance(spec, str | Path) else None
    spec = as_spec(spec)
    refuse_same_text(spec.calibration.dataset, spec.evaluation.dataset)
    source = open_model(spec.model, revision=spec.revision, assume=spec.assume)
    source.require_readable()
    result = search(spec, source.ir)
    tried: dict[tuple[Pass, ...], Trial] = {}
    if measure is not None:
        from planner.quality.trials import trials

        tried = trials(spec, source, result, measure, progress, on)
        result = search(spec, source.ir, measured={passes: trial.quality for passes, trial in tried.items()})
    chosen = _resolved(result.chosen and with_highest_load(spec, result.gpu, result.chosen), source, tried)
    published, nearest = None if chosen is None else chosen.candidate.published, result.nearest()
    served = source if published is None else _open_published(published, source)
    document = PlanDocument(
        format_version=FORMAT_VERSION,
        model=source.ir.name if published is None else published.id,
        weights=source.ir.weights,
        spec=portable_spec(spec),
        chosen=None if chosen is None else _chosen(spec, chosen, served, result, _where(here, result.gpu)),
        rejected=(
            *(_rejected(spec, source.ir, v) for v in nearest),
            *(RejectedPlan(name, (stated(reason),)) for name, reason in result.unweighed),
        ),
        alternatives=() if chosen else tuple(alternatives(spec, source.ir, nearest[0] if nearest else None)),
        illegal=tuple(_illegal(spec, source.ir, result)),
        lost=len(result.rejected),
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


def _measuring(folder: Any) -> Path | None:
    """The folder for measurements, where there are to be any. Raises before any work where what measures is not installed."""
    measure = optional_path("measure", folder, "a folder for measurements")
    if measure is not None:
        from planner.setup.extras import require

        require("torch", "transformers")
    return measure


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
    from planner.apply_cost import holds  # work is forecast of what was chosen only

    candidate, passes = verdict.candidate, verdict.candidate.passes
    lacking = list(missing(served.ir, passes))
    if not served.has_weights:
        lacking.append("only the description of the model is here, not its weights")
    machine, card = where
    here, there = _work(spec, served, verdict, machine), None if card is None else _work(spec, served, verdict, card)
    on_card = there if card is not None and there is not None and holds(there, card) else None
    return ChosenPlan(
        engine=_engine(verdict),
        label=candidate.label,
        passes=tuple(to_json(chain.to_json(passes))),
        settings=planned_settings(candidate.settings),
        memory=whole_bytes(verdict.memory.memory),
        kv_cache=verdict.memory.kv,
        speed=_speed(verdict),
        quality=verdict.quality,
        goals=tuple(planned_goal(result, spec.goals.bands) for result in verdict.goals),
        tensor_bytes=(rewrite(served.ir, passes) if candidate.published else verdict.ir).tensor_bytes,
        apply=here,
        state="resolved" if all(pass_.resolved for pass_ in passes) else "bounded",
        executable=not lacking,
        missing=tuple(lacking),
        notes=(
            *cautions(spec, result, verdict),
            *recovery(spec, served.ir, verdict),
            *(() if candidate.published else unjudged(spec, served.as_stored or served.ir)),
            *unheld(spec, verdict, served.ir, card, there),
            *verdict.notes,
        ),
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


def _work(spec: Spec, served: Source, verdict: Verdict, device: Gpu) -> Effort:
    from planner.apply_cost import effort, no_effort

    if making(verdict) == 0:
        return no_effort(device)
    work = effort(spec, served.ir, verdict.ir, verdict.candidate.passes, device)
    return replace(work, steps={name: round(seconds, 1) for name, seconds in work.steps.items()})


def _engine(verdict: Verdict) -> PlannedEngine:
    """The engine, and the version that was asked, else the newest one known."""
    known = find_engine(verdict.candidate.engine).known_versions()
    return PlannedEngine(verdict.candidate.engine, verdict.candidate.settings.version or (known[-1] if known else None))


def _pareto(verdict: Verdict) -> ParetoPlan:
    memory = whole_bytes(verdict.memory.memory)
    return ParetoPlan(
        verdict.candidate.label,
        memory,
        verdict.memory.kv,
        _speed(verdict),
        verdict.quality,
        *_made(verdict),
        _formula(verdict),
    )


def _rejected(spec: Spec, ir: ModelIR, verdict: Verdict) -> RejectedPlan:
    memory, reasons = whole_bytes(verdict.memory.memory), tuple(followable(spec, ir, verdict))
    legal = all(reason.kind is not ReasonKind.ILLEGAL for reason in verdict.reasons)
    speeds = (_speed(verdict), _formula(verdict)) if legal else (None, None)
    return RejectedPlan(
        verdict.candidate.label, reasons, memory, speeds[0], verdict.quality, *_made(verdict), speeds[1]
    )


def _made(verdict: Verdict) -> tuple[str, int, str, str]:
    """What is to be made, on how many cards, and the formats as `check` takes them."""
    candidate = verdict.candidate
    weights = candidate.published.weights if candidate.published else candidate.weights
    return MAKING[making(verdict)], candidate.settings.parallel.gpus, weights, verdict.ir.kv_cache.dtype


def _formula(verdict: Verdict) -> SpeedEstimate | None:
    """What ranks, of every candidate alike: simulated are a few only."""
    return None if verdict.speed is None else figures_alone(verdict.speed)


def _speed(verdict: Verdict) -> SpeedEstimate | None:
    return None if verdict.shown is None else figures_alone(verdict.shown)


def _illegal(spec: Spec, ir: ModelIR, result: SearchResult) -> Iterator[IllegalKind]:
    for reason, candidates in result.illegal:
        example = next(verdict for verdict in result.rejected if reason in verdict.reasons)
        patch, said = remedy(spec, ir, example, reason), stated(reason)
        yield IllegalKind(
            said.code, said.message, None if patch is None else written(patch), said.data, candidates=candidates
        )
