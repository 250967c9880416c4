"""What a person must know of a plan before they sign it, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator

from passes import chain
from passes.base import Stage
from passes.errors import ReasonKind
from passes.ir.distortions import Recovered
from passes.ir.model import ModelIR
from passes.ir.purpose import purpose
from planner.choice.demand import workload_of
from planner.choice.goals import FLOOR
from planner.choice.rule.criteria import making
from planner.choice.search import SearchResult
from planner.choice.verdict import Verdict
from planner.figures import show
from planner.plan.effort import Effort
from planner.plan.full_context import full_context
from planner.quality.expected import expected_quality, growth
from planner.quality.origin import NOT_JUDGED, loss_since_origin, origin_unknown
from planner.quality.recovery import TRAINED, left, tokens_needed
from planner.spec.spec import Spec
from targets.engines.engine import find_engine
from targets.gpu import Gpu
from targets.simulation.lengths import MOST_APART
from targets.simulation.serving import lengths_told, ramp_told

_GIB = 1 << 30


def cautions(spec: Spec, result: SearchResult, verdict: Verdict) -> Iterator[str]:
    """Say what a person must know before they sign: odds below the confidence, an archived engine, clients that wait, more than one
    machine, numbers that were left open.
    """
    goals, parallel = spec.goals, verdict.candidate.settings.parallel
    if result.rule.takes_too_long(verdict):
        yield (
            f"nobody would wait for it: it takes about {show(result.rule.hours(verdict), 'h')} to make, more than {goals.work_hours:g} h "
            f"(goals: work_hours), and nothing that takes no work is as likely to meet the goals: make it on a card with more memory than "
            f"{result.gpu.name}, or look for a checkpoint that somebody made like it"
        )
    if not verdict.admissible(goals):
        asked, fit, least = (show(odds, "odds") for odds in (goals.confidence, goals.fit_confidence, min(verdict.odds)))
        yield (
            f"no candidate reaches the confidence asked for ({asked}, fit {fit}); "
            f"of those that come into question this one has the best odds, {least} in the least likely"
        )
    near = [result for result in verdict.goals if not result.met]
    if near:
        yield f"it misses {' and '.join(result.name for result in near)}, by less than the band: nobody can tell such figures apart"
    elif verdict.feasible and not goals.asks_quality and verdict.quality.log_ppl_increase.value > math.log1p(FLOOR):
        yield f"no goal is on quality, and everything that serves loses more than {FLOOR:.0%} of perplexity: it is another model"
    if (archived := find_engine(verdict.candidate.engine).archived) is not None:
        yield f"{archived}; it is planned when asked for, or when nothing else serves"
    if verdict.capacity.waiting:
        yield f"{verdict.capacity.running} of {verdict.capacity.clients} requests run at once, the others wait: TTFT holds their wait"
    if (short := full_context(verdict.memory.kv, verdict.capacity).caution(spec.workload.context)) is not None:
        yield short
    due, shown = spec.workload.rate, verdict.shown
    most = None if shown is None else shown.capacity_req_s
    if due is not None and most is not None and spec.workload.asked.lasts and most.value < due:
        yield f"{due:g} requests a second arrive, about {most.value:.3g} are served: the queue grows, if slowly"
    node = spec.target.node
    if parallel.gpus <= node < spec.target.cards and not spec.target.fewest:
        machines = -(-spec.target.cards // node)
        yield f"{parallel.gpus} of {spec.target.cards} cards are used, in one of {machines} machines: the others stay idle"
    if parallel.gpus > node:
        machines = -(-parallel.gpus // node)
        inside = "tensor parallelism stays inside one; start it on each (Ray or a launcher)"
        network = (
            "" if spec.target.network_gb_s else "; between them 12.5 GB/s each are assumed (`target: network_gb_s`)"
        )
        yield f"{parallel.gpus} cards are {machines} machines of {node}: {inside}{network}"
    yield from _bridge(result.gpu, spec.target.bridge, parallel.tp)
    if not (ends := purpose(verdict.ir)).writes:
        yield f"{verdict.ir.name} writes no text: a request ends with its {ends} after the prompt, so output_tokens has no meaning"
    if verdict.served is not None:
        load = workload_of(spec)
        yield from (told for told in (lengths_told(load), ramp_told(load)) if told is not None)
    yield from _far_apart(spec)
    yield from _chosen_numbers(spec, result, verdict)


def _bridge(gpu: Gpu, named: bool, tp: int) -> Iterator[str]:
    """Say which bridge of two cards is not counted on, or what one that the spec names does not join."""
    if named and gpu.bridge is None:
        yield f"{gpu.name} takes no NVLink bridge: `target: bridge` changes nothing"
    elif tp == 2 and gpu.bridge is False:
        yield f"the cards speak over PCIe: an NVLink bridge, which is bought apart, is not assumed of {gpu.name} (target: bridge)"
    elif tp > 2 and gpu.bridge is not None:
        yield f"the cards speak over PCIe: an NVLink bridge joins two {gpu.name}, not {tp}"


def _far_apart(spec: Spec) -> Iterator[str]:
    """Say where lengths vary more than those that are simulated do."""
    for name, length in (("input", spec.workload.input), ("output", spec.workload.output)):
        if length.usual > MOST_APART * length.mean and spec.workload.trace is None:
            most = MOST_APART * length.mean
            yield (
                f"{name}: a p95 of {length.usual:,} is more than {MOST_APART:.2f} times the mean of {length.mean:,}, further apart than "
                f"log-normal lengths are: the load is simulated with {most:,.0f}, the cache counted by {length.usual:,}; a trace says more"
            )


def _chosen_numbers(spec: Spec, result: SearchResult, verdict: Verdict) -> Iterator[str]:
    """What was chosen that the spec left open: how many clients, how many cards, and what fewer of those would miss."""
    capacity, parallel, speed = verdict.capacity, verdict.candidate.settings.parallel, verdict.shown
    if spec.workload.concurrency == "auto" and speed is not None:
        each = f", {capacity.at_once} on each replica (max_num_seqs)" if parallel.dp > 1 else " (max_num_seqs)"
        rate, first = show(speed.throughput_tok_s.value, "tok/s"), show(speed.ttft_ms.value, "ms")
        own = show(speed.decode_tok_s_per_request.value, "tok/s")
        given = (
            f"{rate} in all, {own} each, a first token after {first}"
            if workload_of(spec).decodes
            else f"{show(speed.throughput_tok_s.value, 'requests/s')} in all, each answered after {first}"
        )
        yield f"clients were left open: {capacity.clients} at once{each} give {given}"
    due = workload_of(spec).rate
    if workload_of(spec).concurrency is None and due is not None and math.isfinite(due) and speed is not None:
        took = speed.e2e_ms or speed.ttft_ms + speed.tpot_ms.scaled(workload_of(spec).output_tokens - 1)
        usual = f"{_count(due * took.value / 1e3)} in flight"
        most = f"{capacity.clients:,} at most 95 times of 100"
        yield f"{due:g} requests a second of {show(took.value, 'ms')} each keep about {usual}, {most}"
    if spec.goals.prefer == "cost" and speed is not None:
        hours = parallel.gpus * 1e6 / (3600 * max(speed.throughput_tok_s.value, 1e-9))
        made = "generated tokens" if workload_of(spec).decodes else "answers"
        yield f"a million {made} take {hours:.2f} hours of a card"
    yield from filter(None, (pass_.asks() for pass_ in verdict.candidate.passes))
    if spec.target.fewest and (fewer := result.with_fewer_cards()) is not None:
        missed = [goal.reason().message for goal in fewer.goals if not goal.met]
        told = [reason.message for reason in fewer.reasons if reason.kind is not ReasonKind.DOMINATED]
        misses = "; ".join(told or missed) or f"odds of {show(min(fewer.odds), 'odds')}"
        cards = "1 card" if fewer.candidate.cards == 1 else f"{fewer.candidate.cards} cards"
        yield f"{parallel.gpus} cards are the fewest: with {cards} the nearest is {fewer.candidate.label}: {misses}"


def _count(requests: float) -> str:
    return f"{requests:.1f}" if requests < 10 else f"{requests:,.0f}"


def unjudged(spec: Spec, source: ModelIR) -> Iterator[str]:
    """Say that a goal on quality is on what the plan does alone, which `apply` measures, where the model is quantized already; what that
    cost, where it is known what it was made of.
    """
    if not spec.goals.asks_quality:
        return
    if origin_unknown(source):
        yield f"quality {NOT_JUDGED}: the goal is on what this plan does besides"
    elif lost := growth(loss_since_origin(source, ()).log_ppl_increase.value):
        before = f"{source.name} itself has lost about {100 * lost:.1f} % of perplexity before"
        yield f"the goal on quality is on what this plan does; {before}"


def recovery(spec: Spec, source: ModelIR, verdict: Verdict) -> Iterator[str]:
    """Say how many tokens of training are expected to reach the goal on perplexity, where a chain of the dense `source` trains at all, and
    that adapters are not known to take back as much.
    """
    goal, passes = spec.goals.quality.max_perplexity_increase, verdict.candidate.passes
    place = next((number for number, pass_ in enumerate(passes) if pass_.stage is Stage.DISTILL), None)
    if place is None:
        return
    trained = next(iter(passes[place].distortions(source)))
    assert isinstance(trained, Recovered)
    if trained.adapters:
        yield (
            "what training all weights would leave is expected of adapters, and at worst that they take back nothing: their share is not "
            "published for pruned models"
        )
    if trained.of_another:
        yield "what it learns from another teacher may take it away from the source: by how much only `apply` measures"
    if goal is None or trained.method not in TRAINED:
        return
    pruned, in_all = (expected_quality(source, chain_).log_ppl_increase.value for chain_ in (passes[:place], passes))
    behind = in_all - pruned * left(trained.tokens, trained.method)
    needed = tokens_needed(pruned, math.log1p(goal) - behind, trained.method)
    if needed is None:
        yield f"no training is expected to reach {goal:+.1%} of perplexity: what follows it loses {math.expm1(behind):+.1%} by itself"
    else:
        there = f"the plan has {trained.tokens / 1e6:.3g} M"
        yield f"{goal:+.1%} of perplexity is expected to need about {needed / 1e6:.2g} M tokens of training; {there}"


def unheld(spec: Spec, verdict: Verdict, served: ModelIR, card: Gpu | None, work: Effort | None) -> Iterator[str]:
    """Say what the card of a plan has too little memory for, of the work that makes it."""
    if card is None or work is None or making(verdict) == 0:
        return
    from planner.apply_cost import holds, holds_whole

    size = f"{card.name} has {card.memory_bytes.value / _GIB:.1f} GiB"
    if not holds(work, card):
        least = work.memory_bytes.low / _GIB
        yield f"the work takes at least {least:.1f} GiB and {size}: it is done on a processor, or on a larger card"
    own = spec.calibration.dataset == "self" and chain.needs_text(verdict.candidate.passes, verdict.ir)
    if own and not holds_whole(served, card):
        yield (
            f"the model ({served.tensor_bytes / _GIB:.1f} GiB) writes its own calibration text whole and {size}: to apply there name a "
            "text (`calibration: dataset:`); the figures of the card are those of a text that is there"
        )
