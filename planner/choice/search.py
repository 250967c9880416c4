"""From a spec to a choice: every design of the space, its verdict, the best by the rule (`planner.choice.rule`).

Nothing is left out by taste, only by proof:

* settings change neither legality nor quality, so a design that is illegal or not good enough is out with all its settings;
* weights that alone exceed the card do so whatever is set;
* settings give the cache room or take some of a step's tokens: none serves more than the engine's defaults would with a cache without end;
* memory left for the cache only rises with each leaner setting, so one that does not fit with all of them fits with none;
* where quality or size is preferred, settings change neither, and the first that is admissible ties with every later one but changes less;
* where the fewest cards are asked for, more of them are not looked at once some do;
* settings that buy room with speed are asked only where nothing else meets the goals, of what is short by no more than those can give;
* where a maintained engine has a candidate that every candidate of an archived one comes behind, none of the latter is judged.

The formula ranks; a goal on a percentile, or on means that queues make, is known only once the load is simulated. So the rule's choice is
simulated, and where it misses a goal by that, the next one, best first.

`tests/planner/test_search.py` holds it against a brute-force search of the same space.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial

from passes.base import Pass, Stage
from passes.errors import InputError, Reason, ReasonKind
from passes.ir.model import ModelIR
from passes.record import dataclass
from planner.choice.demand import target_gpu
from planner.choice.goals import ODDS_BAND
from planner.choice.judging.candidate import complete
from planner.choice.judging.decision import decide
from planner.choice.judging.judge import Judge
from planner.choice.judging.simulated import as_told
from planner.choice.nearest import nearest, told_of
from planner.choice.rule.rule import Loss, Rule
from planner.choice.space.designs import Design, designs, engines, nothing_to_weigh, numbers_of_cards
from planner.choice.verdict import Candidate, Verdict, undominated
from planner.quality.expected import Quality
from planner.spec.parts.choices import DistillChoice, PruneChoice, QuantizeChoice
from planner.spec.spec import Spec
from targets.engines.engine import ENGINE_NAMES, find_engine
from targets.gpu import Gpu

#: Why an archived engine is not planned for many clients on less than the odds that are asked for.
UNTRUSTED = Reason(
    "archived",
    "is less likely than is asked, and its engine is archived while a maintained one serves",
    kind=ReasonKind.DOMINATED,
)
#: Of candidates that ended early, how many are judged in full to find the nearest.
_LOOKED_AT = 20


@dataclass(frozen=True)
class SearchResult:
    """The chosen verdict (None: nothing meets the goals), the best of every other design, and the Pareto set of the designs that
    meet the goals (`planner.choice.rule`). `searched`: candidates settled, by a verdict or by proof. `why`: what decided, in one line.
    `archived`: engines that are not weighed because others serve. `closest`: where nothing meets the goals, what comes nearest. `rule`: by
    which candidates are told apart.
    """

    chosen: Verdict | None
    rejected: tuple[Verdict, ...]
    pareto: tuple[Verdict, ...]
    searched: int
    gpu: Gpu
    spec: Spec
    rule: Rule
    why: str = ""
    archived: tuple[str, ...] = ()
    closest: Verdict | None = None

    def nearest(self, count: int = 5) -> tuple[Verdict, ...]:
        """Return the alternatives a person wants to see, nearest first: one for each engine and kind of trouble, judged as the chosen
        one is. What is illegal is there only where nothing else is. Where nothing is chosen, the first is what the rule chooses of them.
        """
        out = self._kinds_of_trouble
        first = sorted(out[: 2 * count], key=lambda v: (v is not self.closest, v.distance))[:count]
        told = [self._told(verdict) for verdict in first]
        best = self.rule.choice([v for v in told if not _only_lost(v)]) if self.chosen is None else None
        return tuple(sorted(told, key=lambda v: best is not None and v is not best))

    @cached_property
    def _kinds_of_trouble(self) -> list[Verdict]:
        """The nearest of each engine and kind of trouble, judged in full, nearest first."""
        seen: set[tuple[str, frozenset[str]]] = set()
        out: list[Verdict] = []
        by_distance = sorted(
            self.rejected,
            key=lambda v: (
                v is not self.closest, _illegal(v), v.distance, v.quality.log_ppl_increase.value, v.candidate.label
            ),
        )  # fmt: skip
        for verdict in by_distance:
            key = (verdict.candidate.engine, frozenset(reason.code for reason in verdict.reasons))
            if key not in seen and not (_illegal(verdict) and out):
                seen.add(key)
                out.append(complete(self.spec, self.gpu, verdict))
        return out

    @cached_property
    def _already_told(self) -> dict[int, Verdict]:
        return {}

    def _told(self, verdict: Verdict) -> Verdict:
        """A candidate that lost, as told: goals first; of what meets all of them then, that the formula ranked it out. Told once."""
        known = self._already_told
        if id(verdict) not in known:
            known[id(verdict)] = self._telling(verdict)
        return known[id(verdict)]

    def _telling(self, verdict: Verdict) -> Verdict:
        told = as_told(self.spec, self.gpu, verdict)
        if told.reasons or not verdict.reasons:
            ordered = tuple(sorted(told.reasons, key=lambda reason: reason.kind is ReasonKind.DOMINATED))
            return told if ordered == told.reasons else replace(told, reasons=ordered)
        short = "; ".join(reason.message for reason in verdict.reasons)
        why = f"meets the goals where its load is simulated; the formula, which ranks, gives {short}"
        return replace(told, reasons=(Reason("ranked_out", why, kind=ReasonKind.DOMINATED),))

    def with_fewer_cards(self) -> Verdict | None:
        """Return the nearest to the goals of those that take fewer cards than the chosen one, by the rule and judged as the chosen one
        is.
        """
        fewer = [v for v in self.rejected if self.chosen and v.candidate.cards < self.chosen.candidate.cards]
        near = sorted(fewer, key=lambda v: v.distance)[:_LOOKED_AT]
        if not near:
            return None
        rule = replace(self.rule, fewest=False)
        judged = [undominated(complete(self.spec, self.gpu, v)) for v in near]
        decision, _ = told_of(rule, judged, partial(as_told, self.spec, self.gpu))
        return decision.chosen

    @property
    def unweighed(self) -> Iterator[tuple[str, Reason]]:
        """The engines that were not weighed, each with why."""
        for name in ENGINE_NAMES if self.spec.engine == "auto" else ():
            engine = find_engine(name)
            why = engine.archived if name in self.archived else engine.unmeasured
            if why is not None and engine.device == ("cpu" if self.gpu.is_cpu else "cuda"):
                yield name, Reason("not_weighed", f"{why}: weighed where a spec names it", f"engine: {name}")

    @property
    def illegal(self) -> list[tuple[Reason, int]]:
        """Each kind of illegality of what the spec asks for by name, with how many candidates it ruled out, most first."""
        counts: Counter[Reason] = Counter(
            reason
            for verdict in self.rejected
            if _asked_for(self.spec, verdict.candidate)
            for reason in verdict.reasons
            if reason.kind is ReasonKind.ILLEGAL
        )
        return counts.most_common()


def _illegal(verdict: Verdict) -> bool:
    """Whether an engine or a pass refuses a candidate: that is near to nothing."""
    return any(reason.kind is ReasonKind.ILLEGAL for reason in verdict.reasons)


def _asked_for(spec: Spec, candidate: Candidate) -> bool:
    """Whether a candidate has something that the spec names: a format or method, a type of the cache, a pruning, a distillation. An engine
    alone is weighed with whatever it has.
    """
    choice, caches = spec.passes.quantize, spec.passes.kv_cache
    stages = {pass_.stage for pass_ in candidate.passes}
    rounded = Stage.QUANTIZE in stages or candidate.published is not None
    named = rounded and isinstance(choice, QuantizeChoice) and choice.names_some
    pruned = Stage.PRUNE in stages and isinstance(spec.passes.prune, PruneChoice)
    trained = Stage.DISTILL in stages and isinstance(spec.passes.distill, DistillChoice)
    return named or pruned or trained or (caches is not None and Stage.KV_CACHE in stages)


def search(
    spec: Spec, ir: ModelIR, *, cards: int | None = None, measured: Mapping[tuple[Pass, ...], Quality] | None = None
) -> SearchResult:
    """Judge every design of the spec's space and choose. `cards`: only designs that use so many. `measured`: what some chains
    were seen to lose, in place of what is expected.
    """
    gpu = target_gpu(spec)
    if spec.workload.images is not None and all(stack.name != "vision" for stack in ir.stacks):
        raise InputError(
            f"{ir.name} sees no pictures: it has no vision encoder",
            remedy="leave workload.images out, or name a model that does",
        )
    judge_design = Judge(spec, ir, gpu, measured)
    rule = rule_of(spec, ir, gpu)
    kept, archived = by_maintenance(spec, gpu)
    space, verdicts = list[Design](), tuple[Verdict, ...]()
    numbers = iter(numbers_of_cards(spec.target) if spec.target.fewest and cards is None else (cards,))
    for used in numbers:
        added = list(designs(spec, ir, gpu, kept, used))
        space, verdicts = [*space, *added], (*verdicts, *map(judge_design, added))
        if any(v.feasible and rule.standing.of(v) == 0 and not rule.takes_too_long(v) for v in verdicts):
            break
    if archived and not any(rule.standing.settles(v) and not rule.takes_too_long(v) for v in verdicts):
        added = list(designs(spec, ir, gpu, archived, cards))
        served = any(map(rule.standing.serves, verdicts))
        late = (v if not served or rule.standing.trusted(v) else _untrusted(v) for v in map(judge_design, added))
        space, archived, verdicts = [*space, *added], (), (*verdicts, *late)
    if not space:
        raise nothing_to_weigh(spec, gpu)
    if not any(v.feasible for v in verdicts):
        short = {_made(design) for design, v in zip(space, verdicts, strict=True) if _just_short(v)}
        tight = [each for each in designs(spec, ir, gpu, kept, cards, frugal=True) if _made(each) in short]
        spared = tuple(map(judge_design, tight))
        if any(v.feasible for v in spared):
            space, verdicts = [*space, *tight], (*verdicts, *spared)
    place = None
    if not any(v.feasible for v in verdicts):
        (place, near), level = nearest(rule, judge_design, space, partial(as_told, spec, gpu))
        known = {place: near}
        if level is not None:
            known[level[0]] = _with_loss(near, level[1])
        verdicts = tuple(known.get(number, verdict) for number, verdict in enumerate(verdicts))
    decision, verdicts = decide(spec, gpu, rule, verdicts, judge_design.others)
    doubt = math.inf
    for used in numbers:  # what is likely enough by the formula may not be once its load is simulated
        if decision is None or (now := rule.standing.doubt(decision.chosen)) == 0 or doubt - now <= ODDS_BAND:
            break
        added, doubt = list(designs(spec, ir, gpu, kept, used)), now
        space = [*space, *added]
        decision, verdicts = decide(spec, gpu, rule, (*verdicts, *map(judge_design, added)), judge_design.others)
    feasible = [v for v in verdicts if v.feasible]
    rejected = [v for v in verdicts if not v.feasible]
    searched = sum(design.stands_for for design in space)
    if decision is None:
        closest = None if place is None else verdicts[place]
        return SearchResult(None, tuple(rejected), (), searched, gpu, spec, rule, archived=archived, closest=closest)
    chosen = decision.chosen
    rejected += [_with_loss(chosen, loss) for loss in decision.lost]
    front = rule.pareto([v for v in feasible if rule.standing.of(v) <= rule.standing.of(chosen)], chosen)
    return SearchResult(chosen, tuple(rejected), front, searched, gpu, spec, rule, decision.why, archived)


def _made(design: Design) -> tuple[object, ...]:
    """What a design serves, whatever its settings."""
    return design.engine, design.passes, design.published, design.settings[0].parallel


def _just_short(verdict: Verdict) -> bool:
    """Whether a candidate does not fit by no more than what a step computes with and its graphs take."""
    large, memory = any(reason.kind is ReasonKind.TOO_LARGE for reason in verdict.reasons), verdict.memory
    spent = memory.memory.activations.high + memory.memory.cuda_graphs.high
    return large and memory.margin.value + spent > 0


def rule_of(spec: Spec, ir: ModelIR, gpu: Gpu) -> Rule:
    """Return the decision rule of a spec for a model on a card; work is forecast for that card, or for a processor where it holds too
    little.
    """
    known: dict[tuple[object, ...], float] = {}

    def hours(verdict: Verdict) -> float:
        from planner.apply_cost import hours_of  # asked of what is made, which is no part of most choices

        made = verdict.candidate.published, verdict.candidate.passes
        if made not in known:
            known[made] = hours_of(spec, ir, verdict.ir, verdict.candidate.passes, gpu)
        return known[made]

    return Rule(spec.goals, gpu, spec.engine != "auto", hours, spec.target.fewest, spec.workload.output.mean > 1)


def by_maintenance(spec: Spec, gpu: Gpu) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the engines of a spec that are weighed at once, and archived ones, which are only where nobody named them and nothing else
    serves.
    """
    names = tuple(name for name, _ in engines(spec, gpu))
    old = () if spec.engine != "auto" else tuple(name for name in names if find_engine(name).archived is not None)
    return tuple(name for name in names if name not in old), old


def _only_lost(verdict: Verdict) -> bool:
    """Whether all that is against a candidate is that another one is better."""
    return bool(verdict.reasons) and all(reason.kind is ReasonKind.DOMINATED for reason in verdict.reasons)


def _untrusted(verdict: Verdict) -> Verdict:
    """A candidate of an engine that nobody maintains, for many clients and less likely than is asked, where a maintained one serves."""
    return replace(verdict, reasons=(*verdict.reasons, UNTRUSTED)) if verdict.feasible else verdict


def _with_loss(chosen: Verdict, loss: Loss) -> Verdict:
    """A candidate that comes as near to the goals with why it was not chosen, beside the goals that it misses."""
    data: dict[str, object] = {
        "by": chosen.candidate.label, "criterion": loss.criterion, "value": loss.value, "against": loss.against
    }  # fmt: skip
    why = Reason("dominated_by", loss.told, None, data, ReasonKind.DOMINATED)
    return replace(loss.candidate, reasons=(*loss.candidate.reasons, why))
