"""The decision rule: which of the candidates that meet the goals is chosen, and what decided (docs/choosing.md).

Candidates go through a list of criteria, most important first. Each criterion gives a figure, the less the better, and a width: what
is worse than the best by no more than that is a tie and goes on to the next. So a gain inside what we are unsure of, or inside a stated
band, buys neither work nor risk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from operator import le
from typing import TYPE_CHECKING, Any, TypeVar, cast

from passes.record import dataclass
from planner.choice.rule.criteria import Criterion, criteria, making, preferred, restarts, speed, takes_too_long
from planner.choice.rule.standing import Standing
from planner.choice.rule.words import FIGURES, MAKING, MISSES, TOLD, standing_told
from planner.choice.verdict import Verdict, refusals
from targets.gpu import Gpu

if TYPE_CHECKING:
    from planner.spec.parts.goals import Goals

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loss:
    """What a candidate lost by: the criterion's name, its figure of the candidate and of the chosen one, and both in words."""

    candidate: Verdict
    criterion: str
    value: float
    against: float
    message: str

    @property
    def told(self) -> str:
        """What it lost by, and whether it meets the goals for all that."""
        if self.candidate.feasible and self.candidate.likely:
            unasked = self.criterion == "standing" and self.message == MISSES
            return f"meets the goals too, but {'loses more quality than anybody would accept' if unasked else self.message}"
        missed = "; ".join(goal.reason().message for goal in self.candidate.goals if not goal.met)
        return (
            f"{missed}, by less than the band"
            if self.criterion == "standing"
            else f"comes as near to the goals, but {self.message}"
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen candidate, why it won in one line, and of each loser what it lost by, in the order they were given."""

    chosen: Verdict
    why: str
    lost: tuple[Loss, ...]


@dataclass(frozen=True)
class Rule:
    """The rule of a spec: its goals, the card, whether the engine was asked for by name, what making a candidate takes (hours), and
    whether the fewest cards are asked for that do.
    """

    goals: Goals
    gpu: Gpu
    engine_named: bool
    hours: Callable[[Verdict], float] = lambda verdict: 0.0
    fewest: bool = False
    decodes: bool = True
    """Whether requests end with more than one token: else it is requests a second that are told apart."""

    def choice(self, candidates: Sequence[Verdict]) -> Verdict | None:
        """Choose among candidates that meet the goals by their predicted values, without a word of what decided; None where there are
        none.
        """
        left, _ = self._sifted(candidates)
        return self._undominated(left[0], candidates) if left else None

    def decide(self, candidates: Sequence[Verdict]) -> Decision | None:
        """Choose among candidates as `choice` does, and say what decided; None where there are none."""
        left, fallen = self._sifted(candidates)
        if not left:
            return None
        chosen = self._undominated(left[0], candidates)
        decided = {id(v): criterion for criterion, out in fallen for v in out}
        lost = tuple(_loss(v, decided.get(id(v)), chosen) for v in candidates if v is not chosen)
        holds = [c.name for c, _ in fallen if c.figure(chosen) <= c.figure(left[0]) + c.width(left[0], chosen)]
        why = self._why(chosen, holds)
        return Decision(chosen, why if chosen is left[0] else f"{why}; {self._replaces(chosen, left[0])}", lost)

    def _sifted(self, candidates: Sequence[Verdict]) -> tuple[list[Verdict], list[tuple[Criterion, list[Verdict]]]]:
        """What the criteria leave of candidates, and each criterion with those that it told from the best."""
        left, fallen = list(candidates), list[tuple[Criterion, list[Verdict]]]()
        for criterion in self.criteria:
            if len(left) <= 1:
                break
            figures = [self._figure(criterion, v) for v in left]
            least = min(figures)
            if least == max(figures):
                continue
            best = left[figures.index(least)]
            beyond = [figure - least - criterion.width(best, v) for figure, v in zip(figures, left, strict=True)]
            out = [v for v, more in zip(left, beyond, strict=True) if more > 0]
            if out:
                fallen.append((criterion, out))
                left = [v for v, more in zip(left, beyond, strict=True) if more <= 0]
        return left, fallen

    def _undominated(self, chosen: Verdict, candidates: Sequence[Verdict]) -> Verdict:
        """The chosen one, or what is better than it in a figure and worse in none."""
        standing, figures = self.standing.of(chosen), self._figures(chosen)
        loses = chosen.quality.log_ppl_increase.value  # the first of the figures: told without the others
        kept = (v for v in candidates if v.quality.log_ppl_increase.value <= loses)
        better = (v for v in kept if _as_good(theirs := self._figures(v), figures) and theirs != figures)
        return next(iter(self.pareto(v for v in better if self.standing.of(v) <= standing)), chosen)

    def pareto(self, candidates: Iterable[Verdict], chosen: Verdict | None = None) -> tuple[Verdict, ...]:
        """Return candidates that no other one beats or equals in all figures (`FIGURES`); of equal ones the chosen, else the first by
        name.
        """
        front: list[tuple[tuple[float, ...], Verdict]] = []
        weighed = [(self._figures(v), v is not chosen, v.candidate.label, v) for v in candidates]
        for figures, _, _, verdict in sorted(weighed, key=lambda entry: entry[:3]):
            if not any(_as_good(others, figures) for others, _ in front):
                front.append((figures, verdict))
        return tuple(verdict for _, verdict in front)

    def _figure(self, criterion: Criterion, v: Verdict) -> float:
        """A criterion's figure: of most candidates it is asked again whenever one of them is simulated."""
        return self._kept(v, id(criterion), criterion.figure)

    def _figures(self, v: Verdict) -> tuple[float, ...]:
        """What the Pareto set is over, less is better."""
        return self._kept(v, None, self._weighed)

    def _kept(self, v: Verdict, key: int | None, figure: Callable[[Verdict], T]) -> T:
        known = self._known.setdefault(id(v), (v, {}))[1]
        if key not in known:
            known[key] = figure(v)
        return cast("T", known[key])

    @cached_property
    def _known(self) -> dict[int, tuple[Verdict, dict[int | None, Any]]]:
        """Figures by candidate, which is held so that no other one gets its number, and by criterion; None: those of the Pareto set."""
        return {}

    def _weighed(self, v: Verdict) -> tuple[float, ...]:
        return (
            v.quality.log_ppl_increase.value, -speed(v, False).value, -speed(v, True).value, v.memory.memory.total.value,
            making(v) + restarts(v) / 2, float(v.candidate.settings.parallel.gpus),
            float(v.capacity.waiting), float(len(v.candidate.changed)), self.standing.doubt(v), self.standing.unfit(v),
            float(refusals(v.reasons)), self.standing.missed(v), float(self.standing.archived(v.candidate.engine)),
            self._preferred.figure(v), float(self.takes_too_long(v)),
        )  # fmt: skip

    def takes_too_long(self, v: Verdict) -> bool:
        """Tell whether making a candidate takes longer than is worth it, so that what is there, or is rounded, comes before it where it
        stands as well.
        """
        return takes_too_long(self.goals, self.hours, v)

    @cached_property
    def standing(self) -> Standing:
        """Where candidates stand."""
        return Standing(self.goals, self.engine_named)

    @cached_property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criteria, most important first."""
        return criteria(self.standing, self.gpu, self.hours, self.fewest, self.decodes)

    @cached_property
    def _preferred(self) -> Criterion:
        return preferred(self.goals, self.gpu)

    def _why(self, chosen: Verdict, decided: Sequence[str]) -> str:
        """One line: what is made of the chosen one, and by what it was told from others: standing, preference, the last two criteria."""
        told = {"standing": standing_told(self.standing.of(chosen)), **TOLD}
        wanted = self._preferred.name
        told[wanted] = f"none that is left is better in {wanted} by more than can be told"
        doubted = () if chosen.admissible(self.goals) else ("standing",)
        first = [name for name in dict.fromkeys((*doubted, *decided)) if name in ("standing", wanted)]
        last = [name for name in dict.fromkeys(decided) if name not in first][-2:]
        return "; ".join((MAKING[making(chosen)], *(told[name] for name in (*first, *last))))

    def _replaces(self, chosen: Verdict, first: Verdict) -> str:
        """Why the one that the criteria left is not chosen: it is dominated, and in what."""
        better = [
            name for name, mine, theirs in zip(FIGURES, self._figures(chosen), self._figures(first), strict=True) if mine < theirs
        ]  # fmt: skip
        return f"in place of {first.candidate.label}, than which it is better in {' and '.join(better[:3])} and worse in nothing"


def _loss(verdict: Verdict, criterion: Criterion | None, chosen: Verdict) -> Loss:
    """What one lost by; nothing that counts where no criterion told it from the chosen one, or the chosen one is no better in it."""
    if criterion is not None:
        theirs, mine = criterion.figure(verdict), criterion.figure(chosen)
        if theirs > mine:
            return Loss(verdict, criterion.name, theirs, mine, criterion.says(theirs, mine))
    return Loss(verdict, "tie", 0.0, 0.0, "is as good in every figure that counts")


def _as_good(mine: tuple[float, ...], theirs: tuple[float, ...]) -> bool:
    """Whether figures are worse in none."""
    return all(map(le, mine, theirs))
