"""Where a candidate stands: admissible before likely before near, what nobody maintains behind, and by how much its odds fall short."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from passes.errors import ReasonKind
from passes.record import dataclass
from planner.choice.goals import FLOOR
from planner.choice.verdict import Verdict, judge_quality
from planner.quality.expected import Quality, growth
from targets.engines.engine import find_engine

if TYPE_CHECKING:
    from planner.spec.parts.goals import Goals

#: Clients of one person: an engine that nobody maintains, but that is made for one user, may serve so many.
FEW_CLIENTS = 2
#: By how much an engine that nobody maintains stands behind for more clients; where one stands of equals that are told apart later.
BEHIND, _LAST_OF_EQUALS = 6, 0.5


@dataclass(frozen=True, slots=True)
class Standing:
    """How candidates of a spec stand by its goals; `engine_named`: the engine was asked for by name, so that it may be an archived one."""

    goals: Goals
    engine_named: bool

    def of(self, v: Verdict) -> int:
        """Return the number of a candidate's tier: 0 admissible, 2 likely only, 4 misses a goal by less than the band. An engine that
        nobody maintains, unless it was asked for, comes behind all of them (6, 8, 10) for more than few clients: those it is good at.
        """
        tier = self._tier_of(v.quality, likely=v.feasible and v.likely, sure=v.admissible(self.goals))
        return tier + self.behind(v.candidate.engine, v.capacity.clients)

    def at_best(self, quality: Quality, engine: str, clients: int) -> float:
        """Return the number of the best place of a candidate of this quality, whatever its memory and speed; infinite where it misses a
        goal on quality.
        """
        results = list(judge_quality(self.goals, quality))
        if not all(result.tolerated(self.goals.bands) for result in results):
            return math.inf
        likely = all(result.met for result in results)
        tier = self._tier_of(quality, likely=likely, sure=all(r.odds >= self.goals.confidence for r in results))
        return self._placed(tier + self.behind(engine, clients), engine)

    def place(self, v: Verdict) -> float:
        """Return the number of a candidate's place: its tier, an engine that nobody maintains last of those that are admissible."""
        return self._placed(self.of(v), v.candidate.engine)

    def settles(self, v: Verdict) -> bool:
        """Tell whether every candidate of an engine that nobody maintains comes behind this one of a maintained engine."""
        return v.feasible and self.of(v) <= (0 if v.capacity.clients <= FEW_CLIENTS else BEHIND - 1)

    def serves(self, v: Verdict) -> bool:
        """Tell whether a candidate of a maintained engine surely holds the load and keeps the quality, however fast: all that is against it
        is a goal on speed.
        """
        speed = all(goal.goal.of_speed or goal.tolerated(self.goals.bands) for goal in v.goals)
        missed = all(reason.kind is ReasonKind.GOAL_MISSED for reason in v.reasons)
        return bool(v.goals) and speed and missed and self.unfit(v) == 0 and not self.archived(v.candidate.engine)

    def trusted(self, v: Verdict) -> bool:
        """Tell whether a candidate may be chosen where a maintained engine serves: of an engine that nobody maintains, for more than few
        clients, only one with the odds asked for.
        """
        return not self.behind(v.candidate.engine, v.capacity.clients) or v.admissible(self.goals)

    def doubt(self, v: Verdict) -> float:
        """Return the probability by which odds fall short of the confidence that is asked, of the goals or of the fit; none of what is
        admissible. Of what misses a goal, the probability that not all of them are kept.
        """
        if v.admissible(self.goals):
            return 0.0
        if not v.feasible:
            return 1.0 - math.prod(v.odds)
        *met, fits = v.odds
        return max(0.0, self.goals.fit_confidence - fits, *(self.goals.confidence - odds for odds in met))

    def unfit(self, v: Verdict) -> float:
        """Return the probability by which the odds of fitting fall short of the confidence that is asked; all of it where what fits has
        become another model.
        """
        if not v.feasible and self._is_another(v.quality):
            return self.goals.fit_confidence
        return max(0.0, self.goals.fit_confidence - v.capacity.odds)

    def unserved(self, v: Verdict) -> bool:
        """Tell whether not all clients are served at once: some wait, where that is not free, or what they need does not fit, or what fits
        has become another model.
        """
        return self.waits(v) or v.capacity.room.value < 0 or (not v.feasible and self._is_another(v.quality))

    def waits(self, v: Verdict) -> bool:
        """Tell whether some clients wait for others, where that is not free."""
        return v.capacity.waiting > 0 and not self.goals.batch

    def missed(self, v: Verdict) -> float:
        """Return the number of e-folds by which memory and goals are missed, none of what is feasible."""
        return 0.0 if v.feasible else v.distance[1]

    def archived(self, engine: str) -> bool:
        """Tell whether nobody maintains an engine, and nobody asked for it."""
        return not self.engine_named and find_engine(engine).archived is not None

    def _tier_of(self, quality: Quality, *, likely: bool, sure: bool) -> int:
        """The tier of a maintained engine's candidate. `likely`: it meets the goals by predicted values; `sure`: with the odds asked."""
        if not likely or self._loses_unasked(quality):
            return 4
        return 0 if sure else 2

    def _placed(self, standing: int, engine: str) -> float:
        return standing + _LAST_OF_EQUALS * (standing == 0 and self.archived(engine))

    def _loses_unasked(self, quality: Quality) -> bool:
        """Whether it loses more than anybody would accept who asks for no quality."""
        return not self.goals.asks_quality and self._is_another(quality)

    def _is_another(self, quality: Quality) -> bool:
        """Whether it loses more than anybody would accept beyond what is asked: it is another model."""
        return growth(quality.log_ppl_increase.value) > FLOOR + (self.goals.quality.max_perplexity_increase or 0.0)

    def behind(self, engine: str, clients: int) -> int:
        """Return the number of places by which an engine stands behind: one that nobody maintains, for more than few clients."""
        return BEHIND if self.archived(engine) and clients > FEW_CLIENTS else 0


def tier(standing: float) -> int:
    """Return the number of the tier of a standing, whatever the engine: 0 admissible, 1 likely only, 2 near."""
    return int(standing % BEHIND) // 2
