"""What a question is asked about, and what an answer to it says: two plans with the figures of both, and what decides between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any

from passes.ir.sources import Source, open_model
from passes.record import dataclass
from planner.choice.demand import target_gpu
from planner.choice.search import SearchResult, rule_of, search
from planner.choice.space.designs import designs
from planner.choice.verdict import Candidate, Verdict, undominated
from planner.explain.compare import Difference, Judged, Side
from planner.plan.codec import to_json
from planner.plan.stated import StatedReason
from planner.spec.spec import Spec
from targets.engines.engine import ENGINE_NAMES, Settings

#: Settings by name: any of them stands in a label where a search changed it.
_SETTINGS = tuple(field.name for field in fields(Settings))


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate, what is to be said of it, and the reasons that say it."""

    candidate: str
    message: str
    reasons: tuple[StatedReason, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A headline; where two plans are compared both of them, their figures and what decides; and what is to be said of other candidates.

    `patch`: what was changed of the spec, as it may stand there.
    """

    answer: str
    candidates: tuple[Row, ...] = ()
    chosen: Side | None = None
    other: Side | None = None
    differences: tuple[Difference, ...] = ()
    decides: str = ""
    patch: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the answer as a document."""
        document: dict[str, Any] = to_json(self)
        return {"answer": self.answer, "candidates": []} | document


@dataclass(frozen=True)
class Asked:
    """What a question is asked about: a spec, its model, and the search that chose, made when it is first needed: words that mean nothing
    are refused without.
    """

    spec: Spec
    source: Source

    @classmethod
    def of(cls, spec: Spec, source: Source) -> Asked:
        """Search a spec at once. Raises InputError where nothing is left to weigh."""
        asked = cls(spec, source)
        _ = asked.result
        return asked

    @cached_property
    def result(self) -> SearchResult:
        """What the search of the spec chose. Raises InputError where nothing is left to weigh."""
        return search(self.spec, self.source.ir)

    @cached_property
    def vocabulary(self) -> str:
        """The words that any candidate of the space is called by, judged or not: those of its label, of settings that may change, of its
        passes' titles.
        """
        gpu, words = target_gpu(self.spec), dict.fromkeys(_SETTINGS)
        for design in designs(self.spec, self.source.ir, gpu, ENGINE_NAMES):
            label = Candidate(design.engine, design.passes, design.settings[0], (), design.published).label
            for said in (label, *(pass_.title() for pass_ in design.passes)):
                words.update(dict.fromkeys(said.lower().split()))
        return " ".join(words)

    def changed(self, spec: Spec) -> Asked:
        """Return the same about a changed spec, of another model where the change names one."""
        model = (spec.model, spec.revision, spec.assume)
        same = model == (self.spec.model, self.spec.revision, self.spec.assume)
        return Asked(spec, self.source if same else open_model(model[0], revision=model[1], assume=spec.assume))

    def judged(self, verdict: Verdict) -> Judged:
        """Return a verdict of the search, whole."""
        return Judged.of(self.spec, self.source.ir, self.result, verdict)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The best of every design, the chosen one first."""
        return (*((self.result.chosen,) if self.result.chosen else ()), *self.result.rejected)

    @property
    def leading(self) -> Judged:
        """The chosen candidate, else the nearest to the goals."""
        return self.judged(self.result.chosen or self.result.nearest()[0])

    def engine(self) -> str:
        """Return the engine of the leading candidate."""
        return self.leading.verdict.candidate.engine

    def best(self, verdicts: Sequence[Verdict]) -> Judged | None:
        """Return the best of some verdicts by the rule, where none meets the goals the nearest; None of none."""
        if not verdicts:
            return None
        pairs = [(v, undominated(v)) for v in verdicts]
        feasible = [plain for _, plain in pairs if plain.feasible]
        chosen = rule_of(self.spec, self.source.ir, self.result.gpu).choice(feasible)
        if chosen is None:
            return self._nearest(verdicts)
        return self.judged(next(v for v, plain in pairs if plain is chosen))

    def _nearest(self, verdicts: Sequence[Verdict]) -> Judged:
        """The nearest to the goals. A verdict that ended early is at least as far as it says: those that are farther need no more of it."""
        found: Judged | None = None
        for verdict in sorted(verdicts, key=lambda v: v.distance):
            if found is not None and verdict.distance >= found.verdict.distance:
                break
            whole = self.judged(verdict)
            if found is None or whole.verdict.distance < found.verdict.distance:
                found = whole
        assert found is not None
        return found
