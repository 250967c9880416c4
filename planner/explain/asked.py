"""What a question is asked about, and what an answer to it says: two plans with the figures of both, and what decides between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from passes.ir.sources import Source, open_model
from passes.record import dataclass
from planner.choice.search import SearchResult, rule_of, search
from planner.choice.verdict import Verdict, undominated
from planner.explain.compare import Difference, Judged, Side
from planner.plan.codec import to_json
from planner.plan.stated import StatedReason
from planner.spec.spec import Spec


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
    """What a question is asked about: a spec, its model, and the search that chose."""

    spec: Spec
    source: Source
    result: SearchResult

    @classmethod
    def of(cls, spec: Spec, source: Source) -> Asked:
        """Search a spec. Raises InputError where nothing is left to weigh."""
        return cls(spec, source, search(spec, source.ir))

    def changed(self, spec: Spec) -> Asked:
        """Return the same about a changed spec, of another model where the change names one."""
        model = (spec.model, spec.revision, spec.assume)
        same = model == (self.spec.model, self.spec.revision, self.spec.assume)
        return Asked.of(spec, self.source if same else open_model(model[0], revision=model[1], assume=spec.assume))

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
