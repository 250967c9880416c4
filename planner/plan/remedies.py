"""What to change in a spec so that one reason less speaks against a candidate: a part of the spec, as it may stand there, and tried.

A shorter context, fewer clients, a larger card or another engine for what is too large or refused; for a goal that is missed, the figure
at which it would be met.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from passes import chain
from passes.base import Pass, Stage
from passes.errors import InputError, NotModelledError, Reason, ReasonKind
from passes.ir.model import ModelIR
from passes.quantize.format_names import pass_named
from planner.choice.demand import target_gpu
from planner.choice.goals import Goal
from planner.choice.judging.judge import judged
from planner.choice.judging.simulated import served
from planner.choice.space.chains import pinned
from planner.choice.verdict import MEAN, Candidate, GoalResult, Verdict
from planner.plan.stated import StatedReason, stated
from planner.spec.parts.choices import PruneChoice, QuantizeChoice
from planner.spec.patch import Patch, Path, at, patched, written
from planner.spec.spec import Spec
from targets.engines.accounting import BEYOND_MODEL
from targets.engines.engine import ENGINE_NAMES, find_engine
from targets.gpu import all_gpus

#: Contexts are said in steps of so many tokens, and no shorter than this share of what is asked.
_STEP, _LEAST_SHARE = 256, 0.25
#: A goal that is missed by more than this factor is not loosened: it would be another one.
_LOOSE = 2.0
#: Shares of the most that is served which a rate is lowered to.
_LESS = (1.0, 0.9, 0.8, 0.65, 0.5)
#: Where the width that MLPs are cut to stands in the spec.
_WIDTH: Path = ("passes", "prune", "intermediate")
#: Where formats stand in the spec, and the groups in the name of one.
_FORMATS: Path = ("passes", "quantize", "formats")
_GROUPS = re.compile(r"-g\d+(?=-|$)")
#: Where a goal stands in the spec, a unit of its there in that of its figures, and how it is written.
_GOALS: Mapping[Goal, tuple[Path, float, str]] = {
    Goal.TTFT: (("goals", "ttft"), 1.0, " ms"), Goal.TPOT: (("goals", "tpot"), 1.0, " ms"),
    Goal.DECODE: (("goals", "decode"), 1.0, " tok/s"), Goal.THROUGHPUT: (("goals", "throughput"), 1.0, " tok/s"),
    Goal.PERPLEXITY: (("goals", "quality", "max_perplexity_increase"), 0.01, "%"), Goal.KL: (("goals", "quality", "max_kl"), 1.0, ""),
    Goal.RATE: (("workload", "rate"), 1.0, "/s"),
}  # fmt: skip


def followable(spec: Spec, ir: ModelIR, verdict: Verdict) -> Iterator[StatedReason]:
    """Give the reasons of a verdict, each with the change of the spec that takes it away as its remedy; None where none was found."""
    for reason in verdict.reasons:
        patch = remedy(spec, ir, verdict, reason)
        yield replace(stated(reason), remedy=None if patch is None else written(patch))


def longer_context(reason: StatedReason) -> str | None:
    """Return what to do where a context is longer than the model is made for; None for another reason."""
    if reason.code != BEYOND_MODEL:
        return None
    own, asked = reason.data["max_context"], reason.data["asked"]
    if not reason.data["rotary"]:
        return f"Ask for a context of {own:,} or less, or a model that is made for more"
    yarn = f'"rope_scaling": {{"rope_type": "yarn", "factor": {-(-asked // own)}.0, "original_max_position_embeddings": {own}}}'
    return (
        f"Ask for a context of {own:,} or less, or a model that is made for more. Some makers say that YaRN does (how far, their "
        f"model cards say): plan a folder whose config.json has {yarn}"
    )


def remedy(spec: Spec, ir: ModelIR, verdict: Verdict, reason: Reason) -> Patch | None:
    """Return the least change of the spec after which a reason does not hold of the candidate, and no other one of its kind does."""
    others = {each.code for each in verdict.reasons} - {reason.code}

    def mends(patch: Patch) -> bool:
        try:
            after = judged(patched(spec, patch), ir, _under(patch, verdict.candidate))
        except (InputError, NotModelledError):
            return False
        if verdict.served is not None and reason.kind is ReasonKind.GOAL_MISSED:
            after = served(patched(spec, patch), target_gpu(spec), after)
        return {each.code for each in after.reasons if each.kind is reason.kind or each.code == reason.code} <= others

    return next(filter(mends, _tries(spec, ir, verdict, reason)), None)


def _under(patch: Patch, candidate: Candidate) -> Candidate:
    """The candidate as a patch has it: on another engine with that one's own cache, pruned, or pruned to another width."""
    prune = patch.get("passes", {}).get("prune")
    if prune is not None and all(pass_.stage is not Stage.PRUNE for pass_ in candidate.passes):
        return replace(candidate, passes=(*pinned(PruneChoice(**prune)), *candidate.passes))
    if (width := patch.get("passes", {}).get("prune", {}).get("intermediate")) is not None:
        steps = (
            step | {"intermediate": width} if "intermediate" in step else step
            for step in chain.to_json(candidate.passes)
        )
        return replace(candidate, passes=chain.from_json(tuple(steps)))
    if (formats := patch.get("passes", {}).get("quantize", {}).get("formats")) is not None:
        groups = {pass_.weights_name: pass_ for pass_ in map(pass_named, formats) if pass_ is not None}
        return replace(candidate, passes=tuple(_regrouped(pass_, groups) for pass_ in candidate.passes))
    if (engine := patch.get("engine")) is None:
        return candidate
    passes = tuple(pass_ for pass_ in candidate.passes if pass_.stage is not Stage.KV_CACHE)
    return replace(candidate, engine=engine, passes=passes)


def _regrouped(pass_: Pass, named: Mapping[str | None, Pass]) -> Pass:
    """The pass of the same name but for its groups, where there is one."""
    return next((other for name, other in named.items() if _ungrouped(name) == _ungrouped(pass_.weights_name)), pass_)


def _ungrouped(name: str | None) -> str | None:
    return name and _GROUPS.sub("", name)


def _tries(spec: Spec, ir: ModelIR, verdict: Verdict, reason: Reason) -> Iterator[Patch]:
    if reason.kind is ReasonKind.GOAL_MISSED:
        missed = (goal for goal in verdict.goals if goal.goal.reason_code == reason.code and _near(goal))
        yield from (patch for goal in missed for patch in _loosened(goal))
    if reason.kind is ReasonKind.TOO_LARGE:
        if verdict.memory.memory.kv_cache.value > 0:
            yield from _shorter(spec, ir, verdict)
        yield from (at(("workload", "concurrency"), n) for n in _halves(spec.workload.asked.concurrency or 1))
        yield from (at(("target", "gpu"), name) for name in _larger_cards(spec, verdict))
    if reason.kind is ReasonKind.ILLEGAL:
        if reason.code == "nothing_to_recover":
            yield from _prunings(ir)
        yield from (at(_WIDTH, width) for width in _widths(spec, reason))
        yield from (at(_FORMATS, names) for names in _groups(spec, reason))
        others = (name for name in ENGINE_NAMES if find_engine(name).weighed_on(target_gpu(spec)))
        yield from (at(("engine",), name) for name in others if name != verdict.candidate.engine)


def _prunings(ir: ModelIR) -> Iterator[Patch]:
    """What distillation may stand behind: as few blocks less as are weighed where pruning is allowed; where none can go, channels."""
    from passes.prune.depth import DepthPrune  # most specs ask for none
    from passes.prune.width import WidthPrune

    yield from (at(("passes", "prune", "depth"), degree.count) for degree in DepthPrune.degrees(ir))
    yield from (at(_WIDTH, degree.intermediate) for degree in WidthPrune.degrees(ir) if degree.intermediate)


def _widths(spec: Spec, reason: Reason) -> tuple[int, ...]:
    """Widths next to the one that is asked which groups divide, the nearest first; none where no width or group is what is wrong."""
    prune, group = spec.passes.prune, reason.data.get("group_size", 0)
    if not isinstance(prune, PruneChoice) or prune.intermediate is None or not group or prune.intermediate % group == 0:
        return ()
    below = prune.intermediate // group * group
    return tuple(sorted(filter(None, (below, below + group)), key=lambda width: abs(width - prune.intermediate)))


def _groups(spec: Spec, reason: Reason) -> Iterator[list[str]]:
    """The formats that a spec names in groups that divide, the coarsest first; none where no group is what is wrong."""
    quantize = spec.passes.quantize
    if isinstance(quantize, QuantizeChoice) and quantize.formats is not None:
        named = [(pass_ and pass_.weights_name) or name for name in quantize.formats for pass_ in (pass_named(name),)]
        for size in reversed(reason.data.get("legal", ())):
            yield [_GROUPS.sub(f"-g{size}", name) for name in named]


def _near(result: GoalResult) -> bool:
    if result.goal is Goal.RATE:
        return True  # how many are served is the answer, however few
    least, most = sorted((result.wanted, result.predicted.value))
    return most <= _LOOSE * least


def _loosened(result: GoalResult) -> Iterator[Patch]:
    """The goal at the figure that is predicted; of a rate also at less, where nobody waits long for a first token."""
    shares = _LESS if result.goal is Goal.RATE else (1.0,)
    yield from (_at(result, share * result.predicted.value) for share in shares)


def _at(result: GoalResult, value: float) -> Patch:
    """The goal at a figure, rounded to its worse side."""
    path, unit, written_unit = _GOALS[result.goal]
    value /= unit
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2) if value else 1.0
    rounded = (math.ceil if result.goal.at_most else math.floor)(value / step) * step
    number = float(f"{rounded:.6g}")
    place = path if result.statistic == MEAN else (*path, result.statistic)
    return at(place, f"{number:g}{written_unit}" if written_unit else number)


def _shorter(spec: Spec, ir: ModelIR, verdict: Verdict) -> Iterator[Patch]:
    """The longest context that fits, where one does that is of use."""
    asked = spec.workload
    least = max(asked.input.longest + asked.output.longest, int(asked.context * _LEAST_SHARE))
    low, high = math.ceil(least / _STEP), (asked.context - 1) // _STEP
    fits = -1
    while low <= high:
        middle = (low + high) // 2
        after = judged(patched(spec, at(("workload", "context"), middle * _STEP)), ir, verdict.candidate)
        if any(reason.kind is ReasonKind.TOO_LARGE for reason in after.reasons):
            high = middle - 1
        else:
            fits, low = middle, middle + 1
    if fits > 0:
        yield at(("workload", "context"), fits * _STEP)


def _halves(clients: int) -> Iterator[int]:
    while clients > 1:
        clients //= 2
        yield clients


def _larger_cards(spec: Spec, verdict: Verdict) -> Iterator[str]:
    """Cards with as much more memory as is short, one of each size, the least first."""
    own = target_gpu(spec)
    least = own.memory_bytes.value - min(verdict.memory.margin.value, verdict.capacity.room.value, 0.0)
    sizes: set[int] = set()
    for card in sorted(all_gpus(), key=lambda card: (card.memory_bytes.value, -card.bandwidth_bytes_per_s)):
        size = round(card.memory_bytes.value / (1 << 30))
        if (
            card.vendor == own.vendor
            and card.offered
            and ("Laptop" in own.name or "Laptop" not in card.name)
            and card.memory_bytes.value > max(least, own.memory_bytes.value)
            and size not in sizes
        ):
            sizes.add(size)
            yield card.name
