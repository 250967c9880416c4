"""What becomes of designs: the verdict of each with its best settings, as far as it takes to know that it is out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TypeAlias

from passes.base import Pass
from passes.errors import Reason, ReasonKind
from passes.ir.model import ModelIR
from passes.record import replace
from planner.asked import rewrite
from planner.choice import capacity as cache
from planner.choice.demand import target_gpu, workload_of
from planner.choice.goals import Goal
from planner.choice.judging.candidate import as_fast, complete, fitted
from planner.choice.rule.rule import Rule
from planner.choice.space.designs import Design
from planner.choice.space.published import description, published_quality
from planner.choice.verdict import Candidate, Verdict, judge_quality, judge_rate, missed
from planner.quality.expected import Quality, expected_quality
from planner.spec.spec import Spec
from targets.engines.engine import MemoryEstimate, Settings, find_engine
from targets.gpu import Gpu
from targets.quantity import Quantity
from targets.speed.estimate import requests_held
from targets.speed.rates import is_fitted

#: What a chain makes of a model: its description, what is illegal in that, its quality.
Made: TypeAlias = tuple[ModelIR, tuple[Reason, ...], Quality]
#: Where the cache holds so many times the requests that there are, none waits for room, whatever share of it the fit takes to be of use.
_AMPLE = 2.0


class Judge:
    """Judges designs of one spec; what they share (a chain's description and quality) is computed once."""

    def __init__(
        self, spec: Spec, source: ModelIR, gpu: Gpu, measured: Mapping[tuple[Pass, ...], Quality] | None = None
    ) -> None:
        self._spec, self._source, self._gpu, self._measured = spec, source, gpu, measured or {}
        self._rule = Rule(spec.goals, gpu, engine_named=True)
        self._workload, self._card_bytes = workload_of(spec), gpu.memory_bytes.value
        self._chains: dict[tuple[object, tuple[Pass, ...]], Made] = {}
        self._described: dict[int, tuple[Design, Made]] = {}
        self._others: dict[Candidate, list[Verdict]] = {}
        self._endless: dict[str, MemoryEstimate] = {}
        self._verdicts: dict[tuple[int, Settings, int | None], tuple[Design, Verdict]] = {}
        self._paced: dict[Hashable, Verdict] = {}  # by a design's number, which `_verdicts` holds

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
        return self._best([*verdicts, *self._waiting_at_need(design, verdicts)])

    def feasible(self, design: Design) -> Verdict | None:
        """Return the best of a design's candidates where one meets the goals: the same as a call, but that none does is known sooner."""
        if self._is_too_large(design) or not self._keeps_up(
            design.engine, self.chain_of(design)[0], design.settings[0]
        ):
            return None
        if self._spec.workload.concurrency == "auto":
            verdict = self(design)
        else:
            first = self.verdict(design, design.settings[0])
            if first.memory.margin.value < 0 and self.leanest(design).margin.value < 0:
                return None
            verdict = self._of_settings(design, first)
        return verdict if verdict.feasible else None

    def whole(self, design: Design) -> list[Verdict]:
        """Return the verdicts of a design with all of its settings, each judged in full."""
        if self._spec.workload.concurrency == "auto":
            verdicts = list(self._loads(design))
        else:
            verdicts = [self.verdict(design, settings) for settings in design.settings]
            verdicts += self._waiting_at_need(design, verdicts)
        return [self._complete(design, verdict) for verdict in verdicts]

    @property
    def clients(self) -> int:
        """Requests at once that a spec asks for, 1 where it leaves that open."""
        return self._workload.concurrency or 1

    def leanest(self, design: Design) -> MemoryEstimate:
        """Return the memory where settings leave the cache the most room; of a load that arrives, whatever of it is there at once."""
        if self._workload.rate is None:
            return self.verdict(design, design.settings[-1]).memory
        ir, settings = self.chain_of(design)[0], design.settings[-1]
        return find_engine(design.engine).memory(ir, self._gpu, settings, self._workload)

    def _best(self, verdicts: Sequence[Verdict]) -> Verdict:
        """The best of a design's verdicts: of those that meet the goals by the rule, else the nearest to them."""
        feasible = [v for v in verdicts if v.feasible]
        chosen = self._rule.choice(feasible)
        if chosen is None:
            return min(verdicts, key=lambda v: v.distance)
        self._others[chosen.candidate] = [v for v in feasible if v is not chosen]
        return chosen

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

    def _waiting_at_need(self, design: Design, verdicts: Sequence[Verdict]) -> Iterator[Verdict]:
        """Where all requests fit with no settings, the same with fewer at once, as many as surely do, or fewer where those miss a goal:
        with the engine's defaults, and with the leanest settings; none where the spec says how many.
        """
        fits = any(v.capacity.room.value >= 0 and v.memory.starts for v in verdicts)
        if fits or design.settings[0].max_num_seqs is not None:
            return
        for verdict in {v.candidate.settings: v for v in (verdicts[0], verdicts[-1])}.values():
            settings = verdict.candidate.settings
            share = -(-verdict.capacity.clients // settings.parallel.dp)
            at_once = min(share - 1, cache.running_at_once(verdict.memory))
            if at_once >= 1 and (settings.max_num_seqs or share) > at_once:
                most = self._most_at_once(design, settings, at_once, share - 1)
                yield (verdict := self.verdict(design, replace(settings, max_num_seqs=most)))
                if not verdict.feasible and at_once < most:
                    yield self.verdict(design, replace(settings, max_num_seqs=at_once))

    def _most_at_once(self, design: Design, settings: Settings, least: int, most: int) -> int:
        """Return the most requests that surely run at once where the engine is told their number."""
        engine, ir = find_engine(design.engine), self.described(design)[0]

        def there(at_once: int) -> int:
            told = replace(settings, max_num_seqs=at_once)
            workload = cache.loaded(engine, ir, self._gpu, told, self._workload)
            return cache.running_at_once(engine.memory(ir, self._gpu, told, workload))

        return cache.most_at_once(least, most, there)

    def _is_too_large(self, design: Design) -> bool:
        """Whether a design's weights alone exceed the card, found in a fraction of the time that a verdict takes."""
        ir, settings = self.chain_of(design)[0], design.settings[0]
        fixed = settings.kv_cache_memory_bytes is not None
        return not fixed and find_engine(design.engine).least_weights(ir, self._gpu, settings) >= self._card_bytes

    def _settings_matter(self, first: Verdict) -> bool:
        """Whether other settings could mend a verdict, or better it."""
        if first.admissible(self._spec.goals) and not self._rule.standing.waits(first):
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
        key = (id(design), settings, clients)
        if key not in self._verdicts:  # with the design, so that no other one gets its number
            self._verdicts[key] = design, self._judged(design, settings, clients)
        return self._verdicts[key][1]

    def _judged(self, design: Design, settings: Settings, clients: int | None) -> Verdict:
        spec, workload = self._spec, self._workload
        ir, illegal, quality = self.described(design)
        if clients:
            workload = replace(workload, concurrency=clients)
        changed = _changed(design.settings[0], settings)
        candidate = Candidate(design.engine, design.passes, settings, changed, design.published)
        verdict = fitted(candidate, ir, self._gpu, workload, quality, illegal)
        if verdict.reasons:
            return verdict
        bad = missed(judge_quality(spec.goals, quality), spec.goals.bands)
        return replace(verdict, reasons=bad) if bad else self._complete(design, verdict)

    def _complete(self, design: Design, verdict: Verdict) -> Verdict:
        """A verdict with its speed and every goal judged: once for all settings of a design that are as fast."""
        if verdict.speed is not None:
            return verdict
        pace = self._pace(design, verdict)
        known = None if pace is None else self._paced.get(pace)
        if known is not None:
            return as_fast(self._spec, verdict, known)
        whole = complete(self._spec, self._gpu, verdict)
        if pace is not None:
            self._paced[pace] = whole
        return whole

    def _pace(self, design: Design, verdict: Verdict) -> Hashable | None:
        """What of a design's settings its speed depends on where all requests are at work at once, and there is ample cache for them: not
        how much of the card is taken, nor how many more could be at work. None where that is not so.
        """
        engine, settings, clients = find_engine(design.engine), verdict.candidate.settings, verdict.capacity.clients
        load = self._workload
        if len(design.settings) == 1 or load.rate is not None or load.trace is not None or not is_fitted(engine.name):
            return None
        if load.concurrency != clients:
            load = replace(load, concurrency=clients)
        scheduler, each = engine.scheduler(self._gpu, settings, load), clients / settings.parallel.dp
        if scheduler.sequences < each or requests_held(verdict.memory.kv, load) < _AMPLE * each:
            return None
        rest = replace(settings, gpu_memory_utilization=None, max_num_seqs=None)
        return id(design), rest, scheduler.tokens, clients

    def described(self, design: Design) -> Made:
        """Return what all settings of a design have in common, what the engine has against it among the reasons."""
        if id(design) not in self._described:  # with the design, so that no other one gets its number
            ir, illegal, quality = self.chain_of(design)
            refused = find_engine(design.engine).illegal(ir, self._gpu, design.settings[0])
            self._described[id(design)] = design, (ir, (*illegal, *refused), quality)
        return self._described[id(design)][1]

    def chain_of(self, design: Design) -> Made:
        """Return what a design's chain makes of the model: all that is known before engine and card are asked."""
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


def _changed(base: Settings, settings: Settings) -> tuple[str, ...]:
    if settings is base:
        return ()
    return tuple(f.name for f in fields(Settings) if getattr(base, f.name) != getattr(settings, f.name))


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
