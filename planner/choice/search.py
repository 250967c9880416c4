"""From a spec to a choice: every design of the space, its verdict, the best that meets the goals.

The choice is optimal over the space for the stated preference. Nothing is left out by taste, only by proof:

* settings change neither legality nor quality, so a design that is illegal or not good enough is out with all its settings;
* weights that alone exceed the card do so whatever is set;
* memory left for the cache only rises with each leaner setting, so one that does not fit with all of them fits with none;
* where quality or size is preferred, settings are tried in the order of the preference, and the first that meets the goals wins.

`tests/planner/test_search.py` holds it against a brute-force search of the same space.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial

from passes.base import Pass
from passes.errors import InputError, Reason, ReasonKind
from passes.ir.model import ModelIR
from planner.asked import rewrite
from planner.choice.space import Design, designs, nothing_to_weigh, workload_of
from planner.choice.verdict import Candidate, Verdict, apart, judge, judge_quality
from planner.quality.expected import Quality, expected_quality, growth
from planner.spec.spec import Spec
from targets.engines.engine import Settings, find_engine
from targets.gpu import Gpu, find_gpu, inline_gpu, installed_gpu


@dataclass(frozen=True)
class SearchResult:
    """The chosen verdict (None: nothing meets the goals), the best of every other design, and the Pareto set of the designs that
    meet the goals over quality, speed and memory. `searched`: candidates settled, by a verdict or by proof.
    """

    chosen: Verdict | None
    rejected: tuple[Verdict, ...]
    pareto: tuple[Verdict, ...]
    searched: int
    gpu: Gpu
    spec: Spec

    def nearest(self, count: int = 5) -> tuple[Verdict, ...]:
        """The alternatives a person wants to see, nearest first: one for each engine and kind of trouble, judged in full."""
        seen: set[tuple[str, frozenset[str]]] = set()
        out: list[Verdict] = []
        for verdict in sorted(
            self.rejected, key=lambda v: (v.distance, v.quality.log_ppl_increase.value, v.candidate.label)
        ):
            key = (verdict.candidate.engine, frozenset(reason.code for reason in verdict.reasons))
            if key not in seen:
                seen.add(key)
                out.append(complete(self.spec, self.gpu, verdict))
        return tuple(sorted(out[: 2 * count], key=lambda v: v.distance)[:count])

    @property
    def illegal(self) -> list[tuple[Reason, int]]:
        """Each kind of illegality with how many candidates it ruled out, most first."""
        counts: Counter[Reason] = Counter(
            reason for verdict in self.rejected for reason in verdict.reasons if reason.kind is ReasonKind.ILLEGAL
        )
        return counts.most_common()


def target_gpu(spec: Spec) -> Gpu:
    """The card of a spec. `auto` is this machine's first card, or its processor."""
    gpu = spec.target.gpu
    if not isinstance(gpu, str):
        return inline_gpu(gpu.model_dump(exclude_none=True))
    return installed_gpu() if gpu == "auto" else find_gpu(gpu)


def search(
    spec: Spec, ir: ModelIR, *, cards: int | None = None, measured: Mapping[tuple[Pass, ...], Quality] | None = None
) -> SearchResult:
    """Judge every design of the spec's space and choose. `cards`: only designs that use so many. `measured`: what some chains
    were seen to lose, in place of what is expected.
    """
    gpu = target_gpu(spec)
    judge_design = _Judge(spec, ir, gpu, measured)
    space = list(designs(spec, ir, gpu, cards))
    if not space:
        raise nothing_to_weigh(spec, gpu)
    verdicts = [judge_design(design) for design in space]
    feasible = sorted((v for v in verdicts if v.feasible), key=lambda v: preference(spec.goals.prefer, v))
    chosen = feasible[0] if feasible else None
    rejected = [v for v in verdicts if not v.feasible]
    if chosen is not None:
        rejected += [replace(v, reasons=(_dominated(spec.goals.prefer, chosen, v),)) for v in feasible[1:]]
    searched = sum(design.stands_for for design in space)
    return SearchResult(chosen, tuple(rejected), pareto_set(feasible), searched, gpu, spec)


def best(spec: Spec, ir: ModelIR, *, cards: int | None = None) -> Verdict | None:
    """The chosen verdict alone: designs in the order of what is known before they are judged, until no later one can win."""
    gpu = target_gpu(spec)
    judge_design = _Judge(spec, ir, gpu)
    found: Verdict | None = None
    for bound, design in sorted(
        ((judge_design.bound(design), design) for design in designs(spec, ir, gpu, cards)), key=lambda pair: pair[0]
    ):
        if found is not None and bound > preference(spec.goals.prefer, found)[0]:
            break
        verdict = judge_design(design)
        if verdict.feasible:
            found = min(found or verdict, verdict, key=partial(preference, spec.goals.prefer))
    return found


class _Judge:
    """Judges designs of one spec; what they share (a chain's description and quality) is computed once."""

    def __init__(
        self, spec: Spec, source: ModelIR, gpu: Gpu, measured: Mapping[tuple[Pass, ...], Quality] | None = None
    ) -> None:
        self._spec, self._source, self._gpu, self._measured = spec, source, gpu, measured or {}
        self._chains: dict[tuple[Pass, ...], tuple[ModelIR, tuple[Reason, ...], Quality]] = {}

    def bound(self, design: Design) -> float:
        """The first part of the preference of every candidate of a design, or less: known without judging it."""
        ir, _, quality = self._described(design.passes)
        known = {"quality": round(quality.log_ppl_increase.value, 9), "size": float(ir.tensor_bytes)}
        return known.get(self._spec.goals.prefer, -math.inf)

    def __call__(self, design: Design) -> Verdict:
        """The best of a design's candidates: by the preference among those that meet the goals, else the nearest to them."""
        first = self.verdict(design, design.settings[0])
        if len(design.settings) == 1 or not self._settings_matter(first):
            return first
        if not first.memory.serves:
            if first.memory.memory.weights.value >= self._gpu.memory_bytes.value:
                return first
            leanest = self.verdict(design, design.settings[-1])
            if not leanest.memory.serves:
                return leanest
        best, verdicts = partial(preference, self._spec.goals.prefer), [first]
        for settings in design.settings[1:]:
            found = min((v for v in verdicts if v.feasible), key=best, default=None)
            # Without effect on quality and size, more changes than a setting that does are never preferred.
            if (
                found is not None
                and self._few_changes
                and len(_changed(design.settings[0], settings)) > len(found.candidate.changed)
            ):
                break
            verdicts.append(self.verdict(design, settings))
        feasible = [v for v in verdicts if v.feasible]
        return min(feasible, key=best) if feasible else min(verdicts, key=lambda v: v.distance)

    @property
    def _few_changes(self) -> bool:
        """Whether a design's settings are compared by how few they are before any figure that they change."""
        return self._spec.goals.prefer in ("quality", "size")

    def _settings_matter(self, first: Verdict) -> bool:
        """Whether other settings could mend a verdict, or better it."""
        if first.feasible:
            return not self._few_changes
        quality = {
            result.goal.reason_code for result in judge_quality(self._spec.goals, first.quality) if not result.met
        }
        return all(reason.kind is not ReasonKind.ILLEGAL and reason.code not in quality for reason in first.reasons)

    def verdict(self, design: Design, settings: Settings) -> Verdict:
        """Judge one candidate as far as it takes to know that it is out: legality and memory, then quality and speed.

        A verdict that ended early is whole in its reasons so far; `complete` judges the rest of the few that are shown.
        """
        spec, engine = self._spec, find_engine(design.engine)
        ir, illegal, quality = self._described(design.passes)
        candidate = Candidate(design.engine, design.passes, settings, _changed(design.settings[0], settings))
        reasons = (*illegal, *engine.illegal(ir, self._gpu, settings))
        memory = engine.memory(ir, self._gpu, settings, workload_of(spec))
        verdict = Verdict(candidate, ir, memory, None, quality, (), (*reasons, *memory.reasons), memory.notes)
        if verdict.reasons:
            return verdict
        missed = tuple(goal.reason() for goal in judge_quality(spec.goals, quality) if not goal.met)
        return replace(verdict, reasons=missed) if missed else complete(spec, self._gpu, verdict)

    def _described(self, chain: tuple[Pass, ...]) -> tuple[ModelIR, tuple[Reason, ...], Quality]:
        found = self._chains.get(chain)
        if found is None:
            quality = self._measured.get(chain) or expected_quality(self._source, chain)
            found = (*rewrite(self._source, chain), quality)
            self._chains[chain] = found
        return found


def _changed(base: Settings, settings: Settings) -> tuple[str, ...]:
    if settings is base:
        return ()
    return tuple(f.name for f in fields(Settings) if getattr(base, f.name) != getattr(settings, f.name))


def complete(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """The verdict with its speed and every goal judged."""
    if verdict.speed is not None:
        return verdict
    engine = find_engine(verdict.candidate.engine)
    speed = engine.speed(verdict.ir, gpu, verdict.candidate.settings, workload_of(spec), verdict.memory)
    goals = tuple(judge(spec.goals, speed, verdict.quality))
    missed = [goal.reason() for goal in goals if not goal.met]
    reasons = tuple(dict.fromkeys((*verdict.reasons, *missed)))
    return replace(verdict, speed=speed, goals=goals, reasons=reasons, notes=(*verdict.notes, *speed.notes))


#: What each preference looks at, the first first. Fewer cards before more at equal figures, then fewer changes of settings.
_ORDERS = {
    "quality": ("log_ppl_increase", "cards", "changes", "decode_tok_s_per_request", "tensor_bytes"),
    "speed": ("decode_tok_s_per_request", "log_ppl_increase", "cards", "changes", "tensor_bytes"),
    "context": ("max_context", "log_ppl_increase", "cards", "changes", "decode_tok_s_per_request"),
    "size": ("tensor_bytes", "log_ppl_increase", "cards", "changes", "decode_tok_s_per_request"),
}
#: Figures of which more is better.
_MORE = frozenset({"decode_tok_s_per_request", "max_context"})


def preference(prefer: str, verdict: Verdict) -> tuple[float, ...]:
    """Sort key, best first: the preferred figure, then the others as ties."""
    if prefer not in _ORDERS:
        raise InputError(f"unknown preference {prefer!r}", remedy=f"one of {', '.join(_ORDERS)}")
    figures = _figures(verdict)
    return tuple(-figures[name] if name in _MORE else figures[name] for name in _ORDERS[prefer])


def _figures(verdict: Verdict) -> dict[str, float]:
    return {
        "log_ppl_increase": round(verdict.quality.log_ppl_increase.value, 9),
        "decode_tok_s_per_request": verdict.speed.decode_tok_s_per_request.value if verdict.speed else 0.0,
        "tensor_bytes": float(verdict.ir.tensor_bytes),
        "max_context": float(verdict.memory.kv.max_context),
        "cards": float(verdict.candidate.settings.parallel.gpus),
        "changes": float(len(verdict.candidate.changed)),
    }


def _dominated(prefer: str, chosen: Verdict, other: Verdict) -> Reason:
    """Why a feasible candidate was not chosen: the first figure of the preference in which the two differ."""
    mine, theirs = _figures(chosen), _figures(other)
    dominated = partial(Reason, "dominated_by", remedy=None, kind=ReasonKind.DOMINATED)
    figure = next((name for name in _ORDERS[prefer] if mine[name] != theirs[name]), None)
    data: dict[str, object] = {"by": chosen.candidate.label}
    if figure is None:
        return dominated("meets the goals too, in every figure like the chosen one", data=data)
    data |= {"figure": figure, "value": theirs[figure], "against": mine[figure]}
    return dominated(f"meets the goals too, but {_worse(figure, theirs[figure], mine[figure])}", data=data)


def _worse(figure: str, theirs: float, mine: float) -> str:
    """A figure of one that lost against that of the chosen one, in words."""
    if figure == "log_ppl_increase":
        one, other = apart(growth(theirs), growth(mine), "%")
        return f"perplexity {one} against {other}"
    if figure == "decode_tok_s_per_request":
        one, other = apart(theirs, mine, "tok/s")
        return f"decodes {one} against {other}"
    if figure == "tensor_bytes":
        return "{} against {}".format(*apart(theirs / 2**30, mine / 2**30, "GiB"))
    words = {"max_context": "context {:,.0f}", "cards": "takes {:.0f} cards", "changes": "changes {:.0f} settings"}
    return f"{words[figure].format(theirs)} against {mine:,.0f}"


def pareto_set(feasible: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Feasible candidates that no other one beats or equals in quality, speed and memory at once."""

    def figures(v: Verdict) -> tuple[float, float, float]:
        speed = v.speed.decode_tok_s_per_request.value if v.speed else 0.0
        return v.quality.log_ppl_increase.value, -speed, v.memory.memory.total.value

    ordered = sorted(feasible, key=figures)
    front: list[Verdict] = []
    for verdict in ordered:
        mine = figures(verdict)
        if not any(all(a <= b for a, b in zip(figures(other), mine, strict=True)) for other in front):
            front.append(verdict)
    return tuple(front)
