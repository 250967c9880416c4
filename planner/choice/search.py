"""From a spec to a choice: every design of the space, its verdict, the best by the rule (`planner.choice.rule`).

Nothing is left out by taste, only by proof:

* settings change neither legality nor quality, so a design that is illegal or not good enough is out with all its settings;
* weights that alone exceed the card do so whatever is set;
* settings give the cache room or take some of a step's tokens: none serves more than the engine's defaults would with a cache without end;
* memory left for the cache only rises with each leaner setting, so one that does not fit with all of them fits with none;
* where quality or size is preferred, settings change neither, and the first that is admissible ties with every later one but changes less;
* where the fewest cards are asked for, more of them are not looked at once some do;
* where a maintained engine has a candidate that every candidate of an archived one comes behind, none of the latter is judged.

The formula ranks; a goal on a percentile, or on means that queues make, is known only once the load is simulated. So the rule's choice is
simulated, and where it misses a goal by that, the next one, best first.

`tests/planner/test_search.py` holds it against a brute-force search of the same space.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TypeAlias

from passes.base import Pass, Stage
from passes.errors import InputError, NotModelledError, Reason, ReasonKind
from passes.ir.model import ModelIR
from passes.record import dataclass
from planner.asked import rewrite
from planner.choice import capacity as cache
from planner.choice.goals import Goal
from planner.choice.published import description, published_quality
from planner.choice.rule import Decision, Loss, Rule
from planner.choice.space import Design, designs, engines, limits_of, nothing_to_weigh, numbers_of_cards, workload_of
from planner.choice.verdict import MEAN, Candidate, Verdict, judge, judge_quality, judge_rate
from planner.quality.expected import Quality, expected_quality
from planner.spec.parts.choices import PruneChoice, QuantizeChoice
from planner.spec.parts.goals import Goals
from planner.spec.patch import patched
from planner.spec.spec import Spec
from targets.engines.engine import ENGINE_NAMES, MemoryEstimate, Settings, SpeedEstimate, find_engine
from targets.gpu import Gpu, find_gpu, inline_gpu, installed_gpu
from targets.quantity import Quantity
from targets.simulation.highest import highest_rate, most_clients
from targets.workload import Workload

#: Of candidates that ended early, how many are judged in full to find the nearest.
_LOOKED_AT = 20


@dataclass(frozen=True)
class SearchResult:
    """The chosen verdict (None: nothing meets the goals), the best of every other design, and the Pareto set of the designs that
    meet the goals (`planner.choice.rule`). `searched`: candidates settled, by a verdict or by proof. `why`: what decided, in one line.
    `archived`: engines that are not weighed because others serve.
    """

    chosen: Verdict | None
    rejected: tuple[Verdict, ...]
    pareto: tuple[Verdict, ...]
    searched: int
    gpu: Gpu
    spec: Spec
    why: str = ""
    archived: tuple[str, ...] = ()

    def nearest(self, count: int = 5) -> tuple[Verdict, ...]:
        """Return the alternatives a person wants to see, nearest first: one for each engine and kind of trouble, judged in full."""
        seen: set[tuple[str, frozenset[str]]] = set()
        out: list[Verdict] = []
        for verdict in sorted(
            self.rejected, key=lambda v: (v.distance, v.quality.log_ppl_increase.value, v.candidate.label)
        ):
            key = (verdict.candidate.engine, frozenset(reason.code for reason in verdict.reasons))
            impossible = any(reason.kind is ReasonKind.ILLEGAL for reason in verdict.reasons)
            unasked = impossible and (self.spec.target.fewest or not _asked_for(self.spec, verdict.candidate))
            if key not in seen and not (unasked and out):
                seen.add(key)
                out.append(complete(self.spec, self.gpu, verdict))
        return tuple(sorted(out[: 2 * count], key=lambda v: v.distance)[:count])

    def with_fewer_cards(self) -> Verdict | None:
        """Return the nearest to the goals of those that take fewer cards than the chosen one, judged in full."""
        fewer = [v for v in self.rejected if self.chosen and v.candidate.cards < self.chosen.candidate.cards]
        near = sorted(fewer, key=lambda v: v.distance)[:_LOOKED_AT]
        return min((complete(self.spec, self.gpu, v) for v in near), key=lambda v: v.distance, default=None)

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


def _asked_for(spec: Spec, candidate: Candidate) -> bool:
    """Whether a candidate has something that the spec names: a format or method, a type of the cache, a pruning. An engine alone is weighed
    with whatever it has.
    """
    choice, caches = spec.passes.quantize, spec.passes.kv_cache
    stages = {pass_.stage for pass_ in candidate.passes}
    rounded = Stage.QUANTIZE in stages or candidate.published is not None
    named = rounded and isinstance(choice, QuantizeChoice) and choice.names_some
    pruned = Stage.PRUNE in stages and isinstance(spec.passes.prune, PruneChoice)
    return named or pruned or (caches is not None and Stage.KV_CACHE in stages)


def target_gpu(spec: Spec) -> Gpu:
    """Return the card of a spec. `auto` is this machine's first card, or its processor. Raises NotModelledError for other makers'
    cards.
    """
    asked = spec.target.gpu
    if not isinstance(asked, str):
        return replace(inline_gpu(asked.model_dump(exclude_none=True)), network=spec.target.network)
    gpu = installed_gpu() if asked == "auto" else find_gpu(asked)
    if gpu.vendor not in ("NVIDIA", "CPU"):
        raise NotModelledError(
            f"{gpu.name}: engines on {gpu.vendor} cards are not modelled", remedy="choose an NVIDIA card"
        )
    return replace(gpu, network=spec.target.network)


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
    for used in numbers_of_cards(spec.target) if spec.target.fewest and cards is None else (cards,):
        added = list(designs(spec, ir, gpu, kept, used))
        space, verdicts = [*space, *added], (*verdicts, *map(judge_design, added))
        if any(v.feasible and rule.standing(v) == 0 for v in verdicts):
            break
    if archived and not any(map(rule.settles, verdicts)):
        added = list(designs(spec, ir, gpu, archived, cards))
        space, archived, verdicts = [*space, *added], (), (*verdicts, *map(judge_design, added))
    if not space:
        raise nothing_to_weigh(spec, gpu)
    decision, verdicts = decide(spec, gpu, rule, verdicts, judge_design.others)
    feasible = [v for v in verdicts if v.feasible]
    rejected = [v for v in verdicts if not v.feasible]
    searched = sum(design.stands_for for design in space)
    if decision is None:
        return SearchResult(None, tuple(rejected), (), searched, gpu, spec, archived=archived)
    chosen = decision.chosen
    rejected += [replace(loss.candidate, reasons=(_dominated(chosen, loss),)) for loss in decision.lost]
    front = rule.pareto([v for v in feasible if rule.standing(v) <= rule.standing(chosen)], chosen)
    return SearchResult(chosen, tuple(rejected), front, searched, gpu, spec, decision.why, archived)


def rule_of(spec: Spec, ir: ModelIR, gpu: Gpu) -> Rule:
    """Return the decision rule of a spec for a model on a card; work is forecast for that card."""

    def hours(verdict: Verdict) -> float:
        from planner.apply_cost import effort  # asked of ties only

        return effort(spec, ir, verdict.ir, verdict.candidate.passes, gpu).seconds.value / 3600

    return Rule(spec.goals, gpu, spec.engine != "auto", hours, spec.target.fewest)


def by_maintenance(spec: Spec, gpu: Gpu) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the engines of a spec that are weighed at once, and archived ones, which are only where nobody named them and nothing else
    serves.
    """
    names = tuple(name for name, _ in engines(spec, gpu))
    old = () if spec.engine != "auto" else tuple(name for name in names if find_engine(name).archived is not None)
    return tuple(name for name in names if name not in old), old


def judged(spec: Spec, ir: ModelIR, candidate: Candidate) -> Verdict:
    """Return what becomes of one candidate, found under another spec, with the card, load and goals of this one; judged in full."""
    gpu, target = target_gpu(spec), spec.target
    settings = replace(candidate.settings, reserve_bytes=target.reserve)
    design = Design(candidate.engine, candidate.passes, (settings,), 1, candidate.published)
    clients = (settings.max_num_seqs or 1) * settings.parallel.dp if spec.workload.concurrency == "auto" else None
    verdict = complete(spec, gpu, Judge(spec, ir, gpu).verdict(design, settings, clients))
    used = candidate.cards
    there = f"there {'is' if target.cards == 1 else 'are'} {target.cards}"
    short = Reason("too_few_cards", f"needs {used} cards, {there}", kind=ReasonKind.TOO_LARGE)
    reasons = (*((short,) if used > target.cards else ()), *verdict.reasons)
    return replace(verdict, candidate=replace(candidate, settings=settings), reasons=reasons)


#: What a chain makes of a model: its description, what is illegal in that, its quality.
_Made: TypeAlias = tuple[ModelIR, tuple[Reason, ...], Quality]


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a design's chain tells before it is judged. `standing`: the best that it may come to (`Rule.place`), infinite where nothing can
    mend it; `figure`: what the spec prefers, before all others where it depends on more than the chain; `doubt`: the least by which its
    odds fall short.
    """

    standing: float
    figure: float
    doubt: float


class Judge:
    """Judges designs of one spec; what they share (a chain's description and quality) is computed once."""

    def __init__(
        self, spec: Spec, source: ModelIR, gpu: Gpu, measured: Mapping[tuple[Pass, ...], Quality] | None = None
    ) -> None:
        self._spec, self._source, self._gpu, self._measured = spec, source, gpu, measured or {}
        self._workload, self._card_bytes = workload_of(spec), gpu.memory_bytes.value
        self._chains: dict[tuple[object, tuple[Pass, ...]], _Made] = {}
        self._last: tuple[Design, _Made] | None = None
        self._others: dict[Candidate, list[Verdict]] = {}
        self._endless: dict[str, MemoryEstimate] = {}

    def __call__(self, design: Design) -> Verdict:
        """The best of a design's candidates by the rule: of those that meet the goals, else the nearest to them."""
        if self._spec.workload.concurrency == "auto":
            return self._best(list(self._loads(design)))
        return self._of_settings(design, self.verdict(design, design.settings[0]))

    def _of_settings(self, design: Design, first: Verdict) -> Verdict:
        """The best of a design's candidates, given that with the first settings."""
        if not self._settings_matter(first):
            return first
        verdicts = [first, *(self.verdict(design, settings) for settings in design.settings[1:])]
        if not any(v.capacity.room.value >= 0 and v.memory.starts for v in verdicts):
            verdicts += self._waiting(design, verdicts)
        return self._best(verdicts)

    def feasible(self, design: Design) -> Verdict | None:
        """Return the best of a design's candidates where one meets the goals: the same as a call, but that none does is known sooner."""
        if self._is_too_large(design) or not self._keeps_up(design.engine, self._chain(design)[0], design.settings[0]):
            return None
        if self._spec.workload.concurrency == "auto":
            verdict = self(design)
        else:
            first = self.verdict(design, design.settings[0])
            if first.memory.margin.value < 0 and self._leanest_margin(design) < 0:
                return None
            verdict = self._of_settings(design, first)
        return verdict if verdict.feasible else None

    def _leanest_margin(self, design: Design) -> float:
        """Bytes of cache beyond one longest request where all settings leave it the most room."""
        ir, settings = self._chain(design)[0], design.settings[-1]
        return find_engine(design.engine).memory(ir, self._gpu, settings, self._workload).margin.value

    def _best(self, verdicts: Sequence[Verdict]) -> Verdict:
        """The best of a design's verdicts: of those that meet the goals by the rule, else the nearest to them."""
        feasible = [v for v in verdicts if v.feasible]
        decided = Rule(self._spec.goals, self._gpu, engine_named=True).decide(feasible)
        if decided is None:
            return min(verdicts, key=lambda v: v.distance)
        self._others[decided.chosen.candidate] = [v for v in feasible if v is not decided.chosen]
        return decided.chosen

    def others(self, verdict: Verdict) -> list[Verdict]:
        """List the other candidates of a design that meet the goals by the formula, where `verdict` is its best."""
        return self._others.pop(verdict.candidate, [])

    def _loads(self, design: Design) -> Iterator[Verdict]:
        """Verdicts with so many clients as run at once: as many as the spec says, else from what surely fits down to where all together are
        no longer fast enough; with the leanest settings where the engine's defaults meet no goal.
        """
        goals = self._spec.goals
        for settings in dict.fromkeys((design.settings[0], design.settings[-1])):
            alone = self.verdict(design, settings, clients=1)
            asked = design.settings[0].max_num_seqs
            numbers = (asked,) if asked else cache.loads(alone.memory)
            if not self._settings_matter(alone) or not numbers:
                yield alone
                return
            enough, met = goals.throughput or 0.0, False
            for at_once in reversed(numbers):
                load = replace(settings, max_num_seqs=at_once)
                verdict = self.verdict(design, load, clients=at_once * settings.parallel.dp)
                if verdict.speed is None and at_once > numbers[0]:
                    continue
                met = met or verdict.feasible
                yield verdict
                in_all = verdict.speed.throughput_tok_s.value if verdict.speed else 0.0
                if in_all * (1 + goals.bands.speed) < enough:
                    break
                enough = max(enough, in_all if goals.batch and verdict.feasible else 0.0)
            if met:
                return

    def _waiting(self, design: Design, verdicts: Sequence[Verdict]) -> Iterator[Verdict]:
        """The same with fewer requests at once, as many as surely fit: with the engine's defaults, and with the leanest settings; none
        where the spec says how many.
        """
        if design.settings[0].max_num_seqs is not None:
            return
        for verdict in {v.candidate.settings: v for v in (verdicts[0], verdicts[-1])}.values():
            settings = verdict.candidate.settings
            share = -(-verdict.capacity.clients // settings.parallel.dp)
            at_once = min(share - 1, cache.running_at_once(verdict.memory))
            if at_once >= 1 and (settings.max_num_seqs or share) > at_once:
                yield self.verdict(design, replace(settings, max_num_seqs=at_once))

    def foreseen(self, rule: Rule, design: Design) -> Foreseen:
        """Return what a design's chain alone tells of it."""
        ir, illegal, quality = self._chain(design)
        clients = self._workload.concurrency or 1
        standing = math.inf if illegal else rule.at_best(quality, design.engine, clients)
        return Foreseen(standing, rule.figure_of_chain(ir, quality), rule.doubt_of_chain(quality))

    def _is_too_large(self, design: Design) -> bool:
        """Whether a design's weights alone exceed the card, found in a fraction of the time that a verdict takes."""
        ir, settings = self._chain(design)[0], design.settings[0]
        fixed = settings.kv_cache_memory_bytes is not None
        return not fixed and find_engine(design.engine).least_weights(ir, self._gpu, settings) >= self._card_bytes

    def _settings_matter(self, first: Verdict) -> bool:
        """Whether other settings could mend a verdict, or better it."""
        if first.admissible(self._spec.goals):
            return self._spec.goals.prefer not in ("quality", "size")
        if first.memory.memory.weights.value >= self._card_bytes:
            return False
        quality = {
            result.goal.reason_code
            for result in judge_quality(self._spec.goals, first.quality)
            if not result.tolerated(self._spec.goals.bands)
        }
        if any(reason.kind is ReasonKind.ILLEGAL or reason.code in quality for reason in first.reasons):
            return False
        return self._may_keep_up(first)

    def _may_keep_up(self, first: Verdict) -> bool:
        """Whether a rate that is not held could be: with a cache without end it would, which no settings have."""
        bands = self._spec.goals.bands
        held = all(goal.tolerated(bands) for goal in first.goals if goal.goal is Goal.RATE)
        return held or self._keeps_up(first.candidate.engine, first.ir, first.candidate.settings)

    def _keeps_up(self, name: str, ir: ModelIR, settings: Settings) -> bool:
        """Whether a rate that is asked would be held with a cache without end."""
        if not self._workload.lasts:
            return True
        engine = find_engine(name)
        if name not in self._endless:
            memory = engine.memory(ir, self._gpu, settings, self._workload)
            self._endless[name] = replace(memory, kv=replace(memory.kv, max_concurrency=Quantity.exact(math.inf)))
        at_best = engine.speed(ir, self._gpu, settings, self._workload, self._endless[name])
        return all(goal.tolerated(self._spec.goals.bands) for goal in judge_rate(self._workload, at_best))

    def verdict(self, design: Design, settings: Settings, clients: int | None = None) -> Verdict:
        """Judge one candidate as far as it takes to know that it is out: legality and memory, then quality and speed.

        A verdict that ended early is whole in its reasons so far; `complete` judges the rest of the few that are shown. `clients`: how many
        are taken where the spec leaves that open.
        """
        spec, workload = self._spec, self._workload
        ir, illegal, quality = self._described(design)
        workload = replace(workload, concurrency=clients or workload.concurrency)
        changed = _changed(design.settings[0], settings)
        candidate = Candidate(design.engine, design.passes, settings, changed, design.published)
        verdict = fitted(candidate, ir, self._gpu, workload, quality, illegal)
        if verdict.reasons:
            return verdict
        missed = tuple(
            goal.reason() for goal in judge_quality(spec.goals, quality) if not goal.tolerated(spec.goals.bands)
        )
        return replace(verdict, reasons=missed) if missed else complete(spec, self._gpu, verdict)

    def _described(self, design: Design) -> _Made:
        """What all settings of a design have in common, what the engine has against it among the reasons."""
        if self._last is None or self._last[0] is not design:
            ir, illegal, quality = self._chain(design)
            refused = find_engine(design.engine).illegal(ir, self._gpu, design.settings[0])
            self._last = design, (ir, (*illegal, *refused), quality)
        return self._last[1]

    def _chain(self, design: Design) -> _Made:
        made, passes = design.published, design.passes
        key = (made and made.id, passes)
        found = self._chains.get(key)
        if found is None:
            if made is None:
                quality = self._measured.get(passes) or expected_quality(self._source, passes)
                found = (*rewrite(self._source, passes), quality)
            else:
                served = description(self._source, made)
                assert served is not None
                found = (*rewrite(served, passes), published_quality(self._source, made, passes))
            self._chains[key] = found
        return found


def fitted(
    candidate: Candidate, ir: ModelIR, gpu: Gpu, workload: Workload, quality: Quality, illegal: tuple[Reason, ...] = ()
) -> Verdict:
    """Return what is known of a candidate under a load before its speed is asked: its memory, and why it is out."""
    engine, settings = find_engine(candidate.engine), candidate.settings
    if not illegal:
        workload = cache.loaded(engine, ir, gpu, settings, workload)
    memory, capacity = cache.in_use(engine, ir, gpu, settings, workload)
    memory = replace(memory, memory=cache.as_used(memory.memory, capacity.needed_bytes))
    reasons = (*illegal, *cache.reasons(memory, capacity, workload))
    return Verdict(candidate, ir, memory, capacity, None, quality, (), reasons, memory.notes)


def _changed(base: Settings, settings: Settings) -> tuple[str, ...]:
    if settings is base:
        return ()
    return tuple(f.name for f in fields(Settings) if getattr(base, f.name) != getattr(settings, f.name))


def complete(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """Return the verdict with its speed and every goal judged."""
    if verdict.speed is not None:
        return verdict
    engine = find_engine(verdict.candidate.engine)
    workload = replace(workload_of(spec), concurrency=verdict.capacity.clients)
    speed = engine.speed(verdict.ir, gpu, verdict.candidate.settings, workload, verdict.memory)
    goals = tuple(judge(spec.goals, workload_of(spec), speed, verdict.quality))
    missed = [goal.reason() for goal in goals if not goal.tolerated(spec.goals.bands)]
    reasons = tuple(dict.fromkeys((*verdict.reasons, *missed)))
    return replace(verdict, speed=speed, goals=goals, reasons=reasons, notes=(*verdict.notes, *speed.notes))


#: Candidates that are simulated at most where the formula gives what goals ask; and of those that it finds too slow: so many, that miss by
#: this factor at most. Percentiles are known of no other candidate, so for these there is no limit.
_MOST, _NEAREST, _NEAR = 16, 4, 3.0
#: Odds of the formula that are short of the confidence by no more may be enough where the load is simulated: so many are tried.
_JUST_SHORT, _DOUBTED = 0.15, 3
_SPEED = {goal.reason_code for goal in Goal if goal.of_speed}


def with_highest_load(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """Return the verdict with how many users it serves within the goals on a request's own speed, where there are some."""
    if not limits_of(spec.goals) or verdict.served is None or verdict.served.ttft_p95_ms is None:
        return verdict
    if workload_of(spec).rate is None:
        return replace(verdict, served=replace(verdict.served, most_clients=most_clients_of(spec, gpu, verdict)))
    return replace(verdict, served=replace(verdict.served, highest_rate=highest_rate_of(spec, gpu, verdict)))


def most_clients_of(spec: Spec, gpu: Gpu, verdict: Verdict) -> int:
    """Return how many clients that wait for answers a candidate serves as `margin` has it, whatever load the spec names; 0: not one."""
    own = None if workload_of(spec).rate is not None else verdict.capacity.clients

    def fits(count: int) -> float:
        load = workload_of(with_clients(spec, count))
        fitting = fitted(verdict.candidate, verdict.ir, gpu, load, verdict.quality)
        return -1.0 if fitting.reasons else _short(fitting.capacity.odds, spec.goals.fit_confidence)

    def served_well(count: int) -> float:
        if count == own:
            return margin(spec, verdict)
        return margin(spec, under(with_clients(spec, count), gpu, verdict))

    most = most_clients(own or 1, fits)
    return most and most_clients(min(own or 1, most), served_well, most)


def highest_rate_of(spec: Spec, gpu: Gpu, verdict: Verdict) -> float:
    """Return the requests a second that arrive and are served so, whatever load the spec names."""
    due = workload_of(spec).rate
    own = due if due is not None and math.isfinite(due) else None

    def served_well(rate: float) -> float:
        if rate == own:
            return margin(spec, verdict)
        load = {"rate": f"{rate}/s", "concurrency": None, "trace": None}
        return margin(spec, under(patched(spec, {"workload": load}), gpu, verdict))

    return highest_rate(own or 1.0, served_well)


def with_clients(spec: Spec, clients: int | str) -> Spec:
    """Return the spec with so many clients that wait for answers in place of its load."""
    return patched(spec, {"workload": {"rate": None, "max_concurrency": None, "trace": None, "concurrency": clients}})


def under(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """Return a verdict's candidate, with its own settings, under the load of a spec: simulated where it fits."""
    fresh = fitted(verdict.candidate, verdict.ir, gpu, workload_of(spec), verdict.quality)
    if fresh.reasons:
        return fresh
    return served(spec, gpu, complete(spec, gpu, fresh))


def margin(spec: Spec, verdict: Verdict) -> float:
    """Return by how much a load is served as the decision rule asks, negative where it is not: it fits, and a request's own speed and the
    rate meet their goals, with the odds that are asked of either (the least difference of their logits).
    """
    if verdict.capacity.room.value < 0 or verdict.speed is None:
        return -math.inf
    goals = [result for result in verdict.goals if result.goal.of_speed and result.goal is not Goal.THROUGHPUT]
    if not all(result.met for result in goals):
        return min(-_LEAST, *(_short(result.odds, spec.goals.confidence) for result in goals))
    fit = _short(verdict.capacity.odds, spec.goals.fit_confidence)
    return min((fit, *(_short(result.odds, spec.goals.confidence) for result in goals)))


#: The least that odds are apart from none and from certainty.
_LEAST = 1e-6


def _short(odds: float, asked: float) -> float:
    """By how much odds exceed those that are asked, in logits."""
    first, second = (min(max(each, _LEAST), 1 - _LEAST) for each in (odds, asked))
    return 0.0 if odds == asked else math.log(first / (1 - first)) - math.log(second / (1 - second))


def _simulated(spec: Spec, gpu: Gpu, verdict: Verdict) -> SpeedEstimate:
    engine = find_engine(verdict.candidate.engine)
    workload = replace(workload_of(spec), concurrency=verdict.capacity.clients, limits=limits_of(spec.goals))
    return engine.served(verdict.ir, gpu, verdict.candidate.settings, workload, verdict.memory)


def served(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """Return the verdict with its load simulated, and the goals judged by that."""
    if verdict.speed is None or verdict.served is not None:
        return verdict
    speed = _simulated(spec, gpu, verdict)
    verdict = _in_flight(spec, gpu, verdict, speed)
    goals = tuple(judge(spec.goals, workload_of(spec), speed, verdict.quality))
    missed = (goal.reason() for goal in goals if not goal.tolerated(spec.goals.bands))
    kept = (reason for reason in verdict.reasons if reason.kind is not ReasonKind.GOAL_MISSED)
    return replace(verdict, goals=goals, reasons=tuple(dict.fromkeys((*kept, *missed))), served=speed)


def _in_flight(spec: Spec, gpu: Gpu, verdict: Verdict, speed: SpeedEstimate) -> Verdict:
    """The verdict with the cache for as many requests as its simulation keeps in flight, where the spec says only how often they come."""
    asked, settings = workload_of(spec), verdict.candidate.settings
    if asked.rate is None or asked.concurrency is not None:
        return verdict
    workload = replace(asked, concurrency=cache.in_flight(asked, speed))
    sequences = find_engine(verdict.candidate.engine).scheduler(gpu, settings, workload).sequences
    needs = cache.capacity(verdict.memory, sequences, workload, settings.parallel.dp)
    memory = replace(verdict.memory, memory=cache.as_used(verdict.memory.memory, needs.needed_bytes))
    short = (reason for reason in cache.reasons(memory, needs, workload) if reason not in verdict.reasons)
    return replace(verdict, capacity=needs, memory=memory, reasons=(*verdict.reasons, *short))


def decide(
    spec: Spec,
    gpu: Gpu,
    rule: Rule,
    verdicts: Sequence[Verdict],
    others: Callable[[Verdict], list[Verdict]] = lambda verdict: [],
) -> tuple[Decision | None, tuple[Verdict, ...]]:
    """Choose among verdicts by the rule, the chosen one simulated. Returns the decision, and the verdicts as they are known then.

    `others`: what else of a verdict's design meets the goals by the formula. It is weighed again where the design's best is simulated: that
    was its best by the formula.
    """
    known = list(verdicts)
    if (spec.goals.asks_speed or workload_of(spec).lasts) and not any(v.feasible for v in known):
        near = sorted((v for v in known if _near(v)), key=lambda v: v.distance)[:_NEAREST]
        known = [served(spec, gpu, v) if any(v is each for each in near) else v for v in known]
    percentile = any(limit.statistic != MEAN for limit in limits_of(spec.goals))
    decision, tried = rule.decide([v for v in known if v.feasible]), 0
    while decision is not None and decision.chosen.served is None and (tried < _MOST or percentile):
        chosen, tried = decision.chosen, tried + 1
        simulated = served(spec, gpu, chosen)
        known = [simulated if v is chosen else v for v in known]
        known += others(chosen)
        decision = rule.decide([v for v in known if v.feasible])
    if decision is not None and decision.chosen.served is not None:
        decision, known = _with_doubtful(spec, gpu, rule, known, decision)
    return decision, tuple(known)


def _with_doubtful(
    spec: Spec, gpu: Gpu, rule: Rule, known: list[Verdict], decision: Decision
) -> tuple[Decision, list[Verdict]]:
    """The decision once candidates are simulated, too, that would be chosen but for odds which the formula puts just below what is asked:
    the chosen one's are the simulation's, and the formula may be the stricter.
    """
    for _ in range(_DOUBTED):
        eased = [(_eased(spec.goals, v), v) for v in known if v.feasible]
        if all(easy is v for easy, v in eased):
            break
        best = rule.decide([easy for easy, _ in eased])
        would = next(v for easy, v in eased if best is not None and easy is best.chosen)
        if would.served is not None:
            break
        simulated = served(spec, gpu, would)
        known = [simulated if v is would else v for v in known]
        decision = rule.decide([v for v in known if v.feasible]) or decision
    return decision, known


def _eased(goals: Goals, verdict: Verdict) -> Verdict:
    """The verdict with every goal on speed kept whose odds are just short by the formula, where it would be admissible so."""
    if verdict.served is not None or verdict.admissible(goals):
        return verdict
    kept = tuple(
        replace(result, predicted=Quantity.exact(result.wanted))
        if result.goal.of_speed and result.met and result.odds >= goals.confidence - _JUST_SHORT
        else result
        for result in verdict.goals
    )
    easier = replace(verdict, goals=kept)
    return easier if easier.admissible(goals) else verdict


def _near(verdict: Verdict) -> bool:
    """Whether nothing is against a candidate but goals on speed, by the formula, and not by far."""
    codes = {reason.code for reason in verdict.reasons}
    return verdict.speed is not None and codes <= _SPEED and verdict.distance[1] < math.log(_NEAR)


def _dominated(chosen: Verdict, loss: Loss) -> Reason:
    """Why a candidate that meets the goals was not chosen."""
    data: dict[str, object] = {
        "by": chosen.candidate.label, "criterion": loss.criterion, "value": loss.value, "against": loss.against
    }  # fmt: skip
    return Reason("dominated_by", loss.told, None, data, ReasonKind.DOMINATED)
