"""The one test of every remedy: a question of `check` whose options are changed, and what it must keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from passes.ir.names import published_of
from passes.record import dataclass
from planner.choice.goals import FLOOR
from planner.choice.question import Outcome, Question
from planner.quality.expected import Quality, expected_quality, growth
from planner.quality.origin import loss_since_origin

if TYPE_CHECKING:
    from planner.spec.parts.goals import Goals

Options = Mapping[str, Any]
#: Tells whether a changed question, what comes of it and its quality keep what is asked besides fitting.
Keeps = Callable[[Question, Outcome, Quality], bool]
#: Odds of fitting that a remedy has at least; those below what needs no saying are said with it.
LIKELY, SURE = 0.8, 0.95
#: Options that change what is lost.
OF_QUALITY = frozenset({"weights", "kv_cache_dtype", "model"})


def keeps_anything(question: Question, outcome: Outcome, quality: Quality) -> bool:
    """Return True: nothing is asked besides fitting."""
    return True


@dataclass(frozen=True, slots=True)
class Kept:
    """What a remedy must keep besides fitting: what the test says, and the odds of fitting. `goals`: by which the rule chooses among
    settings. `quality`: where a plan knows it, of the question as it is asked; `as_given`: what is lost counts from the model as it is
    given.
    """

    test: Keeps = keeps_anything
    odds: float = LIKELY
    goals: Goals | None = None
    quality: Quality | None = None
    as_given: bool = False

    def quality_of(self, question: Question, options: Options) -> Quality:
        """Return what a changed question is expected to lose."""
        if self.quality is not None and not OF_QUALITY & options.keys():
            return self.quality
        return quality_of(question, options, as_given=self.as_given)


#: Nothing besides fitting.
BARE = Kept()


@dataclass(frozen=True, slots=True)
class Trial:
    """A question whose options are changed, and what must be kept: the one test of every remedy."""

    question: Question
    kept: Kept = BARE

    def fits(self, options: Options) -> bool:
        """Tell whether the memory does, with the odds that a remedy must have."""
        return self._likely(changed(self.question, options).outcome())

    def does(self, options: Options) -> bool:
        """Tell whether it fits, loses no more than anybody would accept, and keeps all that is asked."""
        question, quality = changed(self.question, options), self.kept.quality_of(self.question, options)
        loss = growth(quality.log_ppl_increase.value)
        if loss > FLOOR and loss > growth(self.kept.quality_of(self.question, {}).log_ppl_increase.value):
            return False
        outcome = question.outcome()
        return self._likely(outcome) and self.kept.test(question, outcome, quality)

    def settled(self, tries: Sequence[Options]) -> Options | None:
        """Return what a plan would take of options that differ in settings: the rule's choice of those that do; None where none does."""
        from planner.choice.judging.questioned import Asked, chosen_of

        asked = []
        for options in tries:
            question = changed(self.question, options)
            if self._likely(outcome := question.outcome()):
                quality = self.kept.quality_of(self.question, options)
                asked.append(Asked(options, question, outcome, quality))
        while asked:
            best = chosen_of(asked, self.kept.goals) if len(asked) > 1 else asked[0]
            if self.does(best.options):
                return best.options
            asked.remove(best)
        return None

    def _likely(self, outcome: Outcome) -> bool:
        return outcome.fits and outcome.odds >= self.kept.odds


def likely(outcome: Outcome) -> bool:
    """Tell whether an outcome fits with odds that any remedy must have."""
    return outcome.fits and outcome.odds >= LIKELY


def changed(question: Question, options: Options) -> Question:
    """Return the question with options of `check` at other values; another `model` is a published checkpoint of its own."""
    if (name := options.get("model")) is None:
        return question.changed(options)
    from planner.choice.space.published import description

    made = next(each for each in published_of(question.model.name) if each.id == name)
    served = description(question.model, made)
    assert served is not None, f"{name} is no checkpoint that can be described"
    rest = {key: value for key, value in options.items() if key != "model"}
    return replace(question, model=served, file=None).changed(rest)


def quality_of(question: Question, options: Options, *, as_given: bool = False) -> Quality:
    """Return what a changed question is expected to lose against the model that was asked about, by default with what that lost before."""
    after = changed(question, options)
    if (name := options.get("model")) is None:
        return (expected_quality if as_given else loss_since_origin)(after.dense, after.chain)
    from planner.choice.space.published import published_quality

    made = next(each for each in published_of(question.model.name) if each.id == name)
    return published_quality(question.dense, made, after.chain)
