"""What an answer of `check` must keep besides fitting, and the test that a changed question keeps it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from passes.errors import Reason, ReasonKind
from passes.record import dataclass
from planner.choice.goals import Goal
from planner.choice.mending.trial import LIKELY, Kept
from planner.choice.question import Outcome, Question
from planner.figures import apart
from planner.quality.expected import Quality
from targets.engines.engine import SpeedEstimate
from targets.workload import Workload

if TYPE_CHECKING:
    from planner.choice.verdict import GoalResult
    from planner.spec.parts.goals import Goals

#: The code of a reason that it fits, but is less likely to than is asked.
NOT_SURE = "not_sure_enough"
#: A change is simulated whose speed misses its goals by no larger share by the formula; its time to a first token, which waiting makes.
_FAR, _FAR_FIRST = 0.3, 1.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What an answer must keep besides fitting: goals on speed and quality, and how likely it must fit. `as_given`: the goals on quality
    are on what is done to the model as it is given, as a plan's are.
    """

    goals: Goals | None = None
    min_confidence: float | None = None
    as_given: bool = False

    def judged(self, load: Workload, speed: SpeedEstimate, quality: Quality) -> tuple[GoalResult, ...]:
        """Hold the goals that were asked against what is predicted; a rate that is asked is one."""
        if self.goals is None and not load.lasts:
            return ()
        from planner.choice.verdict import judge, judge_rate

        return tuple(judge_rate(load, speed) if self.goals is None else judge(self.goals, load, speed, quality))

    def keeps(self, goal: GoalResult) -> bool:
        """Tell whether a goal is met, or missed by less than the rule's band."""
        return goal.met or (self.goals is not None and goal.tolerated(self.goals.bands))

    def kept(self, outcome: Outcome, goals: tuple[GoalResult, ...]) -> tuple[Reason, ...]:
        """Return what is not kept."""
        missed = tuple(goal.reason() for goal in goals if not self.keeps(goal) and not goal.endless)
        least = self.min_confidence
        if least is None or not outcome.fits or outcome.odds >= least:
            return missed
        message = f"it fits with odds of {apart(outcome.odds, least, 'odds')[0]}, and {100 * least:.6g}% are asked"
        unsure = Reason(NOT_SURE, message, None, {"odds": outcome.odds}, ReasonKind.GOAL_MISSED)
        return (*missed, unsure)

    def to_keep(self, quality: Quality, only: str | None = None) -> Kept:
        """Return what a changed question must keep, whose quality is this unless it is changed. `only`: of one code."""
        least = self.min_confidence if only in (None, NOT_SURE) else None
        return Kept(partial(self._kept_by, only), max(LIKELY, least or 0.0), self.goals, quality, self.as_given)

    def _kept_by(self, only: str | None, question: Question, outcome: Outcome, quality: Quality) -> bool:
        """Whether a changed question keeps the goals: quality first, then speed by the formula, then as the load is served."""
        engine, gpu, settings, load = question.engine, question.gpu, question.settings, outcome.workload
        if self.goals is None and not load.lasts:
            return True
        formula = self._asked(only, load, engine.speed(outcome.ir, gpu, settings, load, outcome.memory), quality)
        if any(_surely_missed(goal) for goal in formula if not self.keeps(goal)):
            return False
        if all(map(_by_formula, formula)):
            return True
        served = engine.served(outcome.ir, gpu, settings, load, outcome.memory)
        return all(map(self.keeps, self._asked(only, load, served, quality)))

    def _asked(self, only: str | None, load: Workload, speed: SpeedEstimate, quality: Quality) -> list[GoalResult]:
        return [goal for goal in self.judged(load, speed, quality) if only in (None, goal.goal.reason_code)]


def _by_formula(goal: GoalResult) -> bool:
    """Whether a simulation tells no more of a goal: quality, and how many requests a second are answered at most."""
    return not goal.goal.of_speed or goal.goal is Goal.RATE


def _surely_missed(goal: GoalResult) -> bool:
    """Whether a goal that is missed by the formula is so by far."""
    return _by_formula(goal) or goal.miss > (_FAR_FIRST if goal.goal is Goal.TTFT else _FAR)
