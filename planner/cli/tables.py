"""What a person sees: a plan as a table that is read in ten seconds. Everything here prints; nothing computes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from planner.choice.goals import Goal

if TYPE_CHECKING:
    from planner.certificate import Certificate, Comparison
    from planner.check import CheckDocument
    from planner.explain import PlanDifference
    from planner.plan.document import (
        ChosenPlan,
        IllegalKind,
        ParetoPlan,
        PlanDocument,
        PortableSpec,
        RejectedPlan,
    )
    from planner.verify import VerifyReport
    from targets.engines.engine import SpeedEstimate
    from targets.workload import Workload

_GIB = 1 << 30
_BAR = 50
#: Odds that need no saying.
_CERTAIN = 0.995


def print_plan(
    console: Console, document: PlanDocument, card: str, saved: str | None, host_memory: int | None = None
) -> None:
    """A plan: what was chosen, memory against the card, goals, why others lost, one line to remember. `host_memory`: bytes here."""
    chosen, gpu = document.chosen, document.lock.gpu
    most = "up to " if document.spec.target.count == "auto" else ""
    cards = f"{most}{gpu.count} × {card}" if gpu.count > 1 else card
    console.print()
    model = f"[bold]{escape(document.model)}[/], {_count(document.weights)} weights"
    console.print(f"  {model}    {escape(cards)}, {gpu.memory_bytes / _GIB:.2f} GiB usable", markup=True)
    console.print()
    if chosen is None:
        _print_no_plan(console, document)
        return
    chain = "  →  ".join(_titles(chosen)) or "as it is"
    engine = f"{chosen.engine.name} {chosen.engine.version or ''}".strip()
    console.print(
        f"  Plan     [bold]{escape(chain)}[/]    {escape(engine)}    {document.searched:,} candidates", markup=True
    )
    if chosen.why:
        console.print(f"  Why      {chosen.why}")
    console.print(f"  Runs     {_layout(chosen)}")
    console.print()
    _print_memory(console, chosen, document.spec.workload.asked)
    _print_goals(console, chosen)
    _print_pareto(console, document)
    console.print(f"  Graph    {_graph(chosen)}")
    console.print()
    if document.rejected:
        console.print("  Why not")
        _print_rejected(console, document.rejected[:3])
        more = document.searched - 1 - min(3, len(document.rejected))
        if more > 0:
            console.print(f"           ({more:,} more: optimize explain)", style="dim")
        console.print()
    if _names_something(document.spec):
        _print_illegal(console, document.illegal)
    for note in chosen.notes:
        console.print(f"  Note     {note}", style="dim")
    tail = f" Saved to {saved}." if saved else ""
    console.print(f"  {_making(chosen)}")
    said = f"Plan: {chain}, {_size(chosen.tensor_bytes)}, served by {engine}."
    console.print(f"  [bold]{escape(said)}[/]{escape(tail)}", markup=True)
    console.print(f"  {_next(chosen, saved, host_memory)}")


def _names_something(spec: PortableSpec) -> bool:
    """Whether a spec asks for an engine, formats, methods or cache types by name, so that one that is illegal is news."""
    quantize = spec.passes.get("quantize")
    named = isinstance(quantize, Mapping) and (quantize.get("formats") or quantize.get("methods"))
    return bool(named or spec.passes.get("kv_cache") or spec.engine != "auto")


def _print_no_plan(console: Console, document: PlanDocument) -> None:
    console.print(f"  [bold red]No plan meets the goals[/] ({document.searched:,} candidates).", markup=True)
    if document.rejected:
        nearest, *others = document.rejected
        misses = "; ".join(reason.message for reason in nearest.reasons)
        console.print(f"  Nearest  {nearest.candidate}: {misses}")
        _print_rejected(console, others[:4])
    console.print()
    for number, other in enumerate(document.alternatives):
        head = "  Instead  " if number == 0 else "           "
        console.print(f"{head}[bold]{escape(other.change)}[/]: {escape(other.candidate)}", markup=True)
    if document.alternatives:
        console.print()
    _print_illegal(console, document.illegal)
    console.print("  [bold]No plan.[/] Loosen a goal, choose another card, or a smaller model.", markup=True)


def _making(chosen: ChosenPlan) -> str:
    """What the plan takes to make."""
    if chosen.nothing_to_make:
        what = chosen.published or "the checkpoint"
        return f"Nothing to make: {what} is served as it is."
    return f"apply needs {_effort(chosen)}, and {_size(chosen.apply.disk_bytes)} of disk."


def _next(chosen: ChosenPlan, saved: str | None, host_memory: int | None) -> str:
    """What to do with a plan, or why nothing can be done with it here."""
    if not chosen.executable:
        return f"The plan can be read, not applied here: {'; '.join(chosen.missing)}."
    least = chosen.apply.memory_bytes.low
    if chosen.apply.host_memory_bytes is None and host_memory is not None and least > host_memory:
        return f"Not here: the work takes at least {_size(least)} of memory, this machine has {_size(host_memory)}."
    return f"Next: optimize apply {saved or ''}".rstrip()


def _layout(chosen: ChosenPlan) -> str:
    """How the model is spread over cards, and what was set."""
    settings = chosen.settings
    degrees = (
        ("TP", settings.tensor_parallel), ("PP", settings.pipeline_parallel), ("DP", settings.data_parallel or 1),
        ("EP", settings.expert_parallel or 1),
    )  # fmt: skip
    spread = ", ".join(f"{name} {degree}" for name, degree in degrees if degree > 1 or name == "TP")
    cards = f"{settings.gpus} cards" if settings.gpus > 1 else "1 card"
    known = (
        ("gpu_memory_utilization", settings.gpu_memory_utilization), ("max_num_seqs", settings.max_num_seqs),
        ("max_num_batched_tokens", settings.max_num_batched_tokens),
    )  # fmt: skip
    names = [f"weights {chosen.weights}", f"KV cache {chosen.kv_cache_dtype}"] if chosen.weights else []
    return "; ".join((f"{cards}, {spread}", *names, *(f"{name} {value}" for name, value in known if value is not None)))


#: Rows of the Pareto set that are shown beside the chosen one.
_PARETO_ROWS = 5


def _print_pareto(console: Console, document: PlanDocument) -> None:
    """The chosen candidate, and those that are better in something: the best in quality, speed and memory, then evenly between them."""
    from planner.choice.verdict import show
    from planner.quality.expected import growth

    chosen = document.chosen
    own = [row for row in document.pareto if chosen is not None and row.candidate == chosen.label]
    others = [row for row in document.pareto if row not in own]
    if not others or not own:
        return
    console.print(
        f"  Choices  {'perplexity':>10s}  {'a client':>10s}  {'all':>11s}  {'TTFT':>8s}  {'memory':>10s}  candidate",
        style="dim",
    )
    for row in (*own, *_shown(others)):
        speed = row.speed
        rates = (
            ("-", "-", "-") if speed is None else
            (
                show(speed.decode_tok_s_per_request.value, "tok/s"), show(speed.throughput_tok_s.value, "tok/s"),
                show(speed.ttft_ms.value, "ms"),
            )
        )  # fmt: skip
        quality = show(growth(row.quality.log_ppl_increase.value), "%")
        mark = "►" if row in own else " "
        console.print(
            f"         {mark} {quality:>10s}  {rates[0]:>10s}  {rates[1]:>11s}  {rates[2]:>8s}  {_size(row.memory.total.value):>10s}  "
            f"{row.candidate} ({row.making})", markup=False,
        )  # fmt: skip
    console.print()


def _shown(rows: Sequence[ParetoPlan]) -> list[ParetoPlan]:
    """At most five rows: the extremes in quality, speed and memory, then others in the order of quality."""
    ordered = sorted(rows, key=lambda row: row.quality.log_ppl_increase.value)
    fastest = max(rows, key=lambda row: row.speed.decode_tok_s_per_request.value if row.speed else 0.0)
    smallest = min(rows, key=lambda row: row.memory.total.value)
    picked = {row.candidate: row for row in (ordered[0], fastest, smallest, *ordered)}
    kept = list(picked.values())[:_PARETO_ROWS]
    return sorted(kept, key=lambda row: row.quality.log_ppl_increase.value)


def _effort(chosen: ChosenPlan) -> str:
    """What applying a plan takes on its own card, where that is another, and here."""
    places = [(chosen.apply_on_card, "on the ")] if chosen.apply_on_card is not None else []
    said = []
    for work, where in [*places, (chosen.apply, "here, on ")]:
        own = "the card's memory" if work.host_memory_bytes is not None else "memory"
        said.append(
            f"about {_time(work.seconds.value)} {where}{work.device or 'this machine'} ({_size(work.memory_bytes.value)} of {own})"
        )
    return "; ".join(said)


def _count(weights: int) -> str:
    return f"{weights / 1e9:.1f} B" if weights >= 1e9 else f"{weights / 1e6:.0f} M"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(size: float) -> str:
    return f"{size / _GIB:.2f} GiB" if size >= _GIB / 2 else f"{size / (1 << 20):.1f} MiB"


def _titles(chosen: ChosenPlan) -> list[str]:
    """What a person is told of each pass of a plan."""
    served = [f"{chosen.published} as it is"] if chosen.published else []
    return [*served, *(pass_.title() for pass_ in chosen.chain)]


def _graph(chosen: ChosenPlan) -> str:
    return " ─► ".join(["source", *_titles(chosen), "checkpoint", chosen.engine.name])


def _print_memory(console: Console, chosen: ChosenPlan, workload: Workload) -> None:
    memory, kv, needs = chosen.memory, chosen.kv_cache, chosen.capacity
    budget, total = memory.budget.value, memory.total.value
    share = min(1.0, total / budget) if budget else 1.0
    full = round(share * _BAR)
    bar = Text("█" * full + "░" * (_BAR - full), style="green" if total <= budget else "red")
    console.print(Text("  Memory   ") + bar + Text(f"  {_size(total)} of {_size(budget)}"))
    overhead = memory.non_torch.value + memory.cuda_graphs.value
    named = {
        "weights": memory.weights.value, "KV cache": 0 if needs is None else needs.needed_bytes,
        "activations": memory.activations.value, "overhead": overhead,
    }  # fmt: skip
    odds = f", fits with {chosen.fit_odds:.0%}" if chosen.fit_odds is not None else ""
    console.print(f"           {'   '.join(f'{name} {_size(size)}' for name, size in named.items() if size)}{odds}")
    if needs is not None and needs.request_bytes:
        each = f" on each of {needs.replicas} replicas" if needs.replicas > 1 else ""
        waiting = f" ({needs.waiting} more wait)" if needs.waiting else ""
        console.print(
            f"           {needs.at_once} × {workload.request_tokens:,} tokens{each}{waiting} need "
            f"{_size(needs.at_once * needs.request_bytes)} of cache, "
            f"one of {workload.context:,} {_size(needs.longest_bytes)}; {_size(memory.kv_cache.value)} are there: "
            f"{kv.tokens.value:,.0f} tokens, longest context {kv.max_context:,}"
        )
    else:
        console.print(f"           no cache that grows; longest context {kv.max_context:,}")
    console.print()


def _print_goals(console: Console, chosen: ChosenPlan) -> None:
    from planner.choice.verdict import apart, show_interval
    from planner.quality.expected import perplexity_growth

    rows: list[tuple[str, ...]] = []
    for goal in chosen.goals:
        p = goal.predicted
        wanted, value = apart(goal.wanted, p.value, goal.unit)
        sign = "≤" if goal.at_most else "≥"
        tick = _tick(goal.met)
        if goal.met and goal.odds is not None and goal.odds < _CERTAIN:
            tick += f" [dim]{goal.odds:.0%}[/]"
        rows.append((goal.said, f"{sign} {wanted}", show_interval(p, goal.unit, value), p.basis, tick))
    named = {goal.name for goal in chosen.goals}
    if chosen.speed is not None and not named & {Goal.DECODE, Goal.TPOT, Goal.THROUGHPUT}:
        decode = chosen.speed.decode_tok_s_per_request
        rows.append((Goal.DECODE, "", show_interval(decode, Goal.DECODE.unit), decode.basis, ""))
    loads = [] if chosen.speed is None else list(_load_lines(chosen.speed))
    if not named & {Goal.PERPLEXITY, Goal.KL}:
        growth = perplexity_growth(chosen.quality.log_ppl_increase)
        rows.append((Goal.PERPLEXITY, "", show_interval(growth, Goal.PERPLEXITY.unit), growth.basis, ""))
    for number, (name, wanted, predicted, basis, tick) in enumerate(rows):
        head = "  Goals    " if number == 0 else "           "
        shown = escape(f"{name:14s} {wanted:14s} {predicted:38s} {basis:11s}")
        console.print(f"{head}{shown} {tick}", markup=True)
    for number, line in enumerate(loads):
        console.print(f"{'  Load     ' if number == 0 else '           '}{line}")
    console.print()


def _tick(holds: bool) -> str:
    return "[green]✓[/]" if holds else "[red]✗[/]"


def _print_rejected(console: Console, rejected: Sequence[RejectedPlan]) -> None:
    for verdict in rejected:
        texts = [reason.message + (f" ({reason.remedy})" if reason.remedy else "") for reason in verdict.reasons[:2]]
        console.print(f"           {verdict.candidate}")
        console.print(f"             {'; '.join(texts)}", style="dim")


def _print_illegal(console: Console, illegal: Sequence[IllegalKind]) -> None:
    for number, reason in enumerate(illegal[:4]):
        remedy = f" ({reason.remedy})" if reason.remedy else ""
        head = "  Illegal  " if number == 0 else "           "
        console.print(f"{head}{reason.message}{remedy}: {reason.candidates} candidates")
    if illegal:
        console.print()


def print_diff(console: Console, difference: PlanDifference) -> None:
    """What differs between two plans."""
    for part, changes in (("inputs", difference.inputs), ("choices", difference.choices)):
        console.print(f"  [bold]{part}[/]" + ("" if changes else ": the same"), markup=True)
        for change in changes:
            console.print(f"    {_change(change.what, change.old, change.new)}")


def _change(what: str, old: Any, new: Any) -> str:
    from planner.choice.verdict import apart, show
    from planner.quality.expected import growth

    if what != "log_ppl_increase":
        return f"{what}: {old} → {new}"
    if old is None or new is None:
        before, after = (str(value) if value is None else show(growth(value), "%") for value in (old, new))
    else:
        before, after = apart(growth(old), growth(new), "%")
    return f"perplexity: {before} → {after}"


def _load_lines(speed: SpeedEstimate) -> Iterator[str]:
    """What the simulated load showed: percentiles, waiting, how many users are served."""
    if speed.ttft_p95_ms is None or speed.requests_s is None:
        return
    told = []
    for name, digits in (("ttft", 0), ("tpot", 1), ("e2e", 0)):
        usual, most = (speed.latency(name, share).value for share in ("p50", "p95"))
        told.append(f"{name.upper()} p50 {usual:,.{digits}f}, p95 {most:,.{digits}f} ms")
    yield f"{'; '.join(told)}; {speed.requests_s.value:.3g} requests/s"
    if speed.cache_full or speed.preemptions:
        waited, lost = speed.cache_full or 0.0, speed.preemptions or 0
        yield f"requests wait for cache {waited:.0%} of the time; {lost:,} times one of {speed.requests:,} lost its own to others"
    if speed.most_clients is not None:
        yield f"serves {speed.most_clients:,} clients at once within the goals on a request"
    if speed.highest_rate is not None:
        yield f"serves {speed.highest_rate:g} requests a second within the goals on a request"


def print_check(console: Console, document: CheckDocument) -> None:
    """The answer of `check`."""
    asked = f"{document.model} on {document.gpu} with {document.engine}"
    if not document.modelled:
        console.print(f"  {escape(asked)}: [bold yellow]not known[/]", markup=True)
        for reason in document.reasons:
            console.print(f"  {reason.message}")
        return
    verdict = "[bold green]fits[/]" if document.fits else "[bold red]does not fit[/]"
    console.print(f"  {escape(asked)}: {verdict} (confidence {document.confidence:.0%})", markup=True)
    memory, kv, speed = document.memory, document.kv_cache, document.speed
    left = memory.kv_cache.value
    cache = f"{_size(left)} left for the KV cache" if left >= 0 else f"{_size(-left)} too much before any KV cache"
    terms = {
        "weights": memory.weights, "activations": memory.activations, "non torch": memory.non_torch, "cuda graphs": memory.cuda_graphs,
    }  # fmt: skip
    parts = [f"{name} {_size(term.value)}" for name, term in terms.items() if term.value]
    console.print(f"  {'   '.join(parts)}   of {_size(memory.budget.value)}: {cache}")
    requests = kv.max_concurrency.value
    if math.isfinite(requests) and left >= 0:
        console.print(
            f"  {kv.tokens.value:,.0f} KV tokens, {requests:.1f} requests at once, longest context {kv.max_context:,} for one"
        )
    decode = speed.decode_tok_s_per_request
    console.print(f"  TTFT {speed.ttft_ms.value:.0f} ms   decode {decode.value:.1f} tok/s ({decode.basis})")
    for line in _load_lines(speed):
        console.print(f"  {line}")
    for reason in document.reasons:
        said = reason.message + (f" → {reason.remedy}" if reason.remedy else "")
        console.print(f"  [red]✗[/] {escape(said)}", markup=True)
    for remedy in document.remedies:
        console.print(f"    what would do: {remedy.message}")
    for note in document.notes:
        console.print(f"  note: {note}", style="dim")


def print_certificate(console: Console, certificate: Certificate) -> None:
    """A finished result: what was promised and what was measured."""
    from planner.choice.verdict import apart

    console.print(f"  [bold]{escape(certificate.model)}[/] → {escape(certificate.label)}", markup=True)
    table = _comparisons(certificate.checks)
    for goal in certificate.goals:
        wanted, measured = apart(goal.wanted, goal.measured, goal.name.unit)
        table.add_row(f"  goal: {goal.name}", f"≤ {wanted}", measured, Text.from_markup(_tick(goal.met)))
    console.print(table)
    for note in certificate.notes:
        console.print(f"  note: {note}", style="yellow")
    for step in certificate.steps:
        reused = " (kept from an earlier run)" if step.reused else ""
        seconds = f"{step.seconds:8.1f} s" + (f" of {step.expected_seconds:.0f}" if step.expected_seconds else "")
        console.print(f"  {step.name:20s}{seconds:18s} peak {_size(step.peak_bytes)}{reused}", style="dim")


def _comparisons(checks: Sequence[Comparison]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for title in ("", "predicted", "measured", ""):
        table.add_column(title)
    for check in checks:
        table.add_row("  " + check.name, check.predicted, check.measured, Text.from_markup(_tick(check.holds)))
    return table


def print_verified(console: Console, report: VerifyReport) -> None:
    """What the running engine showed."""
    console.print(_comparisons(report.checks))
    for timing in report.loads:
        console.print(f"  {timing.described}: {timing.seconds:.0f} s, {timing.tok_s:,.1f} tok/s")
        spreads = {"TTFT": timing.ttft_ms, "TPOT": timing.tpot_ms}
        shown = (f"{name} median {each.median:,.1f}, p95 {each.p95:,.1f} ms" for name, each in spreads.items())
        console.print(
            f"    {'; '.join(shown)}" + (f"; first error: {timing.error}" if timing.error else ""), style="dim"
        )
    for note in report.notes:
        console.print(f"  note: {note}", style="dim")
    verdict = "[bold green]Verified[/]" if report.holds else "[bold red]A promise is not kept[/]"
    console.print(f"  {verdict}; started in {report.start_seconds:.0f} s", markup=True)
