"""A plan as a table that is read in ten seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from passes.base import Stage
from passes.record import dataclass
from planner.asked import AS_IS, spoken
from planner.choice.goals import Goal
from planner.cli.tables.choices import print_choices
from planner.cli.tables.page import INDENT, Page
from planner.cli.tables.parts import load_lines, size
from planner.figures import apart, show, show_interval
from planner.plan.remedies import longer_context
from planner.quality.expected import perplexity_growth
from targets.gpu import find_gpu
from targets.quantity import Quantity

if TYPE_CHECKING:
    from planner.plan.document import PlanDocument
    from planner.plan.parts.chosen import ChosenPlan, PlannedGoal
    from planner.plan.parts.others import RejectedPlan
    from planner.plan.stated import StatedReason
    from targets.workload import Workload

#: Columns of the memory bar.
_BAR = 50
#: Odds that need no saying.
_CERTAIN = 0.995
#: Candidates that lost which are told of.
_WHY_NOT = 3


@dataclass(frozen=True)
class Room:
    """What this machine has for the work, in bytes; None: not asked."""

    memory: int | None = None
    disk: int | None = None


_UNKNOWN = Room()


def print_plan(console: Console, document: PlanDocument, card: str, saved: str | None, room: Room = _UNKNOWN) -> None:
    """Print a plan: what was chosen, memory against the card, goals, choices, why others lost, one line to remember. `room`: this
    machine's.
    """
    page = Page(console)
    page.blank()
    _print_head(page, document, card)
    page.blank()
    if document.chosen is None:
        _print_no_plan(page, document)
        return
    chosen = document.chosen
    chain = "  →  ".join(_words(chosen)) or "as it is"
    engine = f"{chosen.engine.name} {chosen.engine.version or ''}".strip()
    page.line("  Plan     ", Text.assemble((chain, "bold"), f"    {engine}    {document.searched:,} candidates"))
    if chosen.why:
        page.line("  Why      ", chosen.why)
    page.line("  Runs     ", _layout(chosen))
    page.blank()
    _print_memory(page, chosen, document)
    _print_goals(page, chosen, document.spec.confidence("confidence"), not document.spec.workload.asked.decodes)
    print_choices(page, document)
    page.line("  Graph    ", " ─► ".join(("source", *_titles(chosen), "checkpoint", chosen.engine.name)))
    page.blank()
    if document.rejected:
        page.line("  Why not  ")
        _print_rejected(page, document.rejected[:_WHY_NOT])
        more = document.lost - min(_WHY_NOT, len(document.rejected))
        if more > 0:
            page.line(INDENT, f"({more:,} more: optimize explain)", "dim")
        page.blank()
    _print_illegal(page, document)
    for note in chosen.notes:
        page.line("  Note     ", note, "dim")
    for recovery in _recoveries(chosen):
        page.line("  Recovery ", recovery)
    page.line("  Ask      ", f"optimize explain {'; '.join(_questions(document, chosen))}", "dim")
    page.line("  ", _making(chosen, document.lock.gpu.memory_bytes))
    said = Text(f"Plan: {chain}, {size(chosen.tensor_bytes)}, served by {engine}.", "bold")
    page.line("  ", said.append(f" Saved to {saved}." if saved else "", "not bold"))
    for line in _next(chosen, saved, room):
        page.line("  ", line)


def _print_head(page: Page, document: PlanDocument, card: str) -> None:
    """The model that was asked for, the card, and the published checkpoint that is served in the model's place."""
    gpu, chosen, places = document.lock.gpu, document.chosen, document.places
    published = chosen.published if chosen is not None else None
    asked = (
        places.asked if published is not None and places is not None and places.asked is not None else document.model
    )
    most = "up to " if document.spec.target.count == "auto" else ""
    cards = f"{most}{gpu.count} × {card}" if gpu.count > 1 else card
    about = f", {_count(document.weights)} weights    {cards}, {size(gpu.memory_bytes)} usable"
    page.line("  ", Text.assemble((asked, "bold"), about))
    if published is not None and published != asked:
        page.line("  ", Text.assemble("served as ", (published, "bold"), ", published of it"))


def _questions(document: PlanDocument, chosen: ChosenPlan) -> Iterator[str]:
    """What may be asked of this plan, among others."""
    yield f"why {chosen.engine.name}"
    if document.rejected:
        yield f"why not {next((r.weights for r in document.rejected if r.weights not in (None, AS_IS, chosen.weights)), 'awq')}"
    fewest = document.spec.target.count == "auto"
    yield "how many users" if fewest else f"what if {2 * document.lock.gpu.count} cards"
    yield "cheapest card that fits"


def _print_no_plan(page: Page, document: PlanDocument) -> None:
    page.line("  ", Text.assemble(("No plan meets the goals", "bold red"), f" ({document.searched:,} candidates)."))
    short = next(filter(None, map(longer_context, document.rejected[0].reasons)), None) if document.rejected else None
    if document.rejected:
        nearest, *others = document.rejected
        page.line("  Nearest  ", nearest.candidate)
        for reason in nearest.reasons:
            page.line(INDENT + "  ", f"{reason.message}{_by_how_much(reason, nearest)}{_remedy(reason)}")
        _print_rejected(page, others[:4])
        page.blank()
        if short is None and not _refused(document):
            print_choices(page, document)
    for number, other in enumerate(document.alternatives):
        head = "  Instead  " if number == 0 else INDENT
        page.line(head, Text.assemble((other.change, "bold"), f": {other.candidate}"))
    if document.alternatives:
        page.blank()
    _print_illegal(page, document)
    asked = document.spec.target.gpu
    if isinstance(asked, str) and asked != "auto" and (note := find_gpu(asked).note) is not None:
        page.line("  Note     ", note, "dim")
    if _refused(document):
        page.line(
            "  ",
            Text.assemble(("No plan.", "bold"), " What the spec names cannot be had so: change it as is said above."),
        )
        return
    if short is not None:
        page.line("  ", Text.assemble(("No plan.", "bold"), f" {short}"))
        return
    spec = document.places.spec if document.places is not None else None
    page.line(
        "  ", Text.assemble(("No plan.", "bold"), " Loosen a goal, choose another card, or a smaller model."
        f" For instance: optimize explain {_near(spec) if spec else 'SPEC'} {_helpful(document)}"),
    )  # fmt: skip


def _helpful(document: PlanDocument) -> str:
    """A question whose answer is a plan: the change that was found to lead to one, else what takes each reason of a candidate away."""
    if document.alternatives:
        return f"what if {_as_asked(document.alternatives[0].change)}"
    loosened = (_loosened(plan) for plan in document.rejected)
    changes = next((words for words in loosened if words), None)
    return f"what if {changes}" if changes else "cheapest card that fits"


def _as_asked(change: str) -> str:
    """A change of the question in the words that `explain` takes: `4 cards`, `model Qwen/Qwen2.5-3B-Instruct`, `version 0.11`."""
    if change.endswith(" cards"):
        return change
    return f"model {change}" if "/" in change else f"version {change.split()[-1]}"


def _loosened(plan: RejectedPlan) -> str:
    """The remedies of all reasons against a candidate, in the words that `explain` takes: `decode 10 tok/s and concurrency 2`; empty where
    one has none, or only another engine, whose own candidates stand beside it.
    """
    import yaml

    patches = [yaml.safe_load(reason.remedy or "{}") for reason in plan.reasons]
    if any(not patch or "engine" in patch for patch in patches):
        return ""
    return " and ".join(words for patch in patches for words in _words_of(patch))


def _words_of(patch: Mapping[str, object], above: tuple[str, ...] = ()) -> Iterator[str]:
    """Each value of a patch behind its key, without the part of the spec that it stands in."""
    for key, value in patch.items():
        path = (*above, key)
        if isinstance(value, Mapping):
            yield from _words_of(value, path)
        else:
            yield f"{'.'.join(path[1:] or path)} {value}"


def _refused(document: PlanDocument) -> bool:
    """Whether even the nearest candidate has something illegal that the spec asks for by name: no card and no goal mends that."""
    illegal = {kind.code for kind in document.illegal}
    return any(reason.code in illegal for reason in document.rejected[0].reasons) if document.rejected else False


def _near(path: str) -> str:
    """A path as it may be typed here."""
    from pathlib import Path

    file = Path(path)
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else path


def _by_how_much(reason: StatedReason, plan: RejectedPlan) -> str:
    """By how much a candidate misses what a reason says, where the message's figures do not say it themselves."""
    wanted, predicted = reason.data.get("wanted"), reason.data.get("predicted")
    if wanted is not None and predicted is not None and reason.code != Goal.RATE.reason_code:
        if reason.code == Goal.PERPLEXITY.reason_code:
            return f", {show(100 * (predicted - wanted), 'points')} too much"
        return f", off by {abs(predicted - wanted) / abs(wanted):.1%}" if wanted else ""
    needed, available = reason.data.get("needed_bytes"), reason.data.get("available_bytes")
    if plan.memory is not None and reason.code == "weights_do_not_fit":
        m = plan.memory
        needed, available = (
            m.weights.value + m.activations.value + m.non_torch.value + m.cuda_graphs.value,
            m.budget.value,
        )
    return f", {size(needed - available)} too much" if needed is not None and available is not None else ""


def _recoveries(chosen: ChosenPlan) -> Iterator[str]:
    """What training takes and what is left in the end, where the plan has any."""
    growth = perplexity_growth(chosen.quality.log_ppl_increase)
    for pass_ in (pass_ for pass_ in chosen.chain if pass_.stage is Stage.DISTILL):
        seconds = sum(chosen.apply.steps.get(step, 0.0) for step in pass_.choice_steps)
        takes = f", about {show(seconds / 3600, 'h')} on {chosen.apply.device or 'this machine'}" if seconds else ""
        left = (
            f"{show_interval(growth, '%')} perplexity expected in the end"
            if growth.high
            else "nothing was lost before it"
        )
        yield f"{pass_.title()}{takes}: {left}"


def _making(chosen: ChosenPlan, card_bytes: int) -> str:
    """What the plan takes to make: hours on its card and on this machine."""
    if chosen.nothing_to_make:
        return f"Nothing to make: {chosen.published or 'the checkpoint'} is served as it is."
    return f"apply needs {_effort(chosen, card_bytes)}, and {size(chosen.apply.disk_bytes)} of disk."


def _next(chosen: ChosenPlan, saved: str | None, room: Room) -> Iterator[str]:
    """What to do with a plan, or why nothing can be done with it here: what is missing, what this machine cannot hold."""
    work = chosen.apply
    host = work.memory_bytes if work.host_memory_bytes is None else work.host_memory_bytes
    needs = (("memory", host.low, room.memory), ("disk", work.disk_bytes, room.disk))
    short = [
        "at least {} of {}, this machine has {}".format(apart(need, has, "B")[0], what, apart(need, has, "B")[1])
        for what, need, has in needs if has is not None and need > has and not chosen.nothing_to_make
    ]  # fmt: skip
    if short:
        elsewhere = f": apply it on the {chosen.apply_on_card.device}" if chosen.apply_on_card is not None else ""
        yield f"Not here{elsewhere}. The work takes {'; '.join(short)}."
    if not chosen.executable and chosen.nothing_to_make:
        yield f"Next: optimize launch {saved or 'PLAN'} --target compose (--list names the other targets)"
    elif not chosen.executable:
        yield f"The plan can be read, not applied here: {'; '.join(chosen.missing)}."
    elif not short:
        yield f"Next: optimize apply {saved or ''}".rstrip()


def _layout(chosen: ChosenPlan) -> str:
    """How the model is spread over cards, and what was set."""
    settings = chosen.settings
    degrees = [
        ("TP", settings.tensor_parallel), ("PP", settings.pipeline_parallel), ("DP", settings.data_parallel or 1),
        *((("EP", settings.expert_parallel),) if (settings.expert_parallel or 1) > 1 else ()),
    ]  # fmt: skip
    cards = f"{settings.gpus} cards" if settings.gpus > 1 else "1 card"
    known = (
        ("gpu_memory_utilization", settings.gpu_memory_utilization), ("max_num_seqs", settings.max_num_seqs),
        ("max_num_batched_tokens", settings.max_num_batched_tokens),
    )  # fmt: skip
    names = [f"weights {chosen.weights}", f"KV cache {chosen.kv_cache_dtype}"] if chosen.weights else []
    spread = ", ".join(f"{name} {degree}" for name, degree in degrees)
    return "; ".join((f"{cards}: {spread}", *names, *(f"{name} {value}" for name, value in known if value is not None)))


def _effort(chosen: ChosenPlan, card_bytes: int) -> str:
    """What applying a plan takes on its own card, where that is another, and here."""
    places = [(chosen.apply_on_card, "on the ")] if chosen.apply_on_card is not None else []
    said = []
    for work, where in [*places, (chosen.apply, "here, on ")]:
        own = "the card's memory" if work.host_memory_bytes is not None else "memory"
        hours = show(work.seconds.value / 3600, "h")
        held = size(work.memory_bytes.value)
        if work is chosen.apply_on_card and work.memory_bytes.value > card_bytes:
            held = f"at least {size(work.memory_bytes.low)}"
        said.append(f"about {hours} {where}{work.device or 'this machine'} ({held} of {own})")
    return "; ".join(said)


def _count(weights: int) -> str:
    return f"{weights / 1e9:.1f} B" if weights >= 1e9 else f"{weights / 1e6:.0f} M"


def _words(chosen: ChosenPlan) -> list[str]:
    """What a person is told of each pass of a plan, with the names that `check` takes."""
    return [*_served(chosen), *map(spoken, chosen.chain)]


def _titles(chosen: ChosenPlan) -> list[str]:
    return [*_served(chosen), *(pass_.title() for pass_ in chosen.chain)]


def _served(chosen: ChosenPlan) -> list[str]:
    return [f"{chosen.published} as it is"] if chosen.published else []


def _print_memory(page: Page, chosen: ChosenPlan, document: PlanDocument) -> None:
    memory, kv, needs = chosen.memory, chosen.kv_cache, chosen.capacity
    budget, total = memory.budget.value, memory.total.value
    columns = _BAR if page.width is None else min(_BAR, page.width - len(INDENT))
    full = round(min(1.0, total / budget if budget else 1.0) * columns)
    sure = chosen.fit_odds is None or chosen.fit_odds >= document.spec.confidence("fit_confidence")
    style = "red" if total > budget else "green" if sure else "yellow"
    page.line("  Memory   ", Text("█" * full + "░" * (columns - full), style=style).append(
        f"  {' of '.join(apart(total, budget, 'B'))}", "default"
    ))  # fmt: skip
    named = {
        "weights": memory.weights.value, "KV cache": 0 if needs is None else needs.needed_bytes,
        "activations": memory.activations.value, "overhead": memory.non_torch.value + memory.cuda_graphs.value,
    }  # fmt: skip
    odds = f", fits with {show(chosen.fit_odds, 'odds')}" if chosen.fit_odds is not None else ""
    page.line(INDENT, f"{'   '.join(f'{name} {size(held)}' for name, held in named.items() if held)}{odds}")
    page.line(
        INDENT,
        _cache(chosen, document.spec.workload.asked) or f"no cache that grows; longest context {kv.max_context:,}",
    )
    page.blank()


def _cache(chosen: ChosenPlan, workload: Workload) -> str:
    """The cache that is needed, and what is there; nothing of a model that keeps none."""
    needs, kv = chosen.capacity, chosen.kv_cache
    if needs is None or not needs.request_bytes:
        return ""
    each = f" on each of {needs.replicas} replicas" if needs.replicas > 1 else ""
    waiting = f" ({needs.waiting} more wait)" if needs.waiting else ""
    needed, there = apart(needs.at_once * needs.request_bytes, chosen.memory.kv_cache.value, "B")
    return (
        f"{needs.at_once} × {workload.request_tokens:,} tokens{each}{waiting} need {needed} of cache, "
        f"one of {workload.context:,} {size(needs.longest_bytes)}; "
        f"{there} are there: {kv.tokens.value:,.0f} tokens, longest context {kv.max_context:,}"
    )


def _print_goals(page: Page, chosen: ChosenPlan, confidence: float, embeds: bool) -> None:
    """Print goals, then what everybody wants to know: of a model that `embeds` texts how long one takes, since it decodes nothing."""
    rows: list[tuple[str, str, str, str, Text]] = []
    for goal in chosen.goals:
        p = goal.predicted
        wanted, value = apart(goal.wanted, p.value, goal.unit)
        sign = "≤" if goal.at_most else "≥"
        rows.append(
            (goal.said, f"{sign} {wanted}", show_interval(p, goal.unit, value), p.basis, _mark(goal, confidence))
        )
    named = {goal.name for goal in chosen.goals}
    if chosen.speed is not None and embeds and Goal.TTFT not in named:
        rows.append(_unasked(Goal.TTFT, chosen.speed.ttft_ms))
    if chosen.speed is not None and not embeds and not named & {Goal.DECODE, Goal.TPOT, Goal.THROUGHPUT}:
        rows.append(_unasked(Goal.DECODE, chosen.speed.decode_tok_s_per_request))
    if not named & {Goal.PERPLEXITY, Goal.KL}:
        rows.append(_unasked(Goal.PERPLEXITY, perplexity_growth(chosen.quality.log_ppl_increase)))
    for number, (name, wanted, predicted, basis, mark) in enumerate(rows):
        head = "  Goals    " if number == 0 else INDENT
        if page.narrow:
            page.line(head, Text(f"{name} {wanted} ".replace("  ", " ")).append_text(mark))
            page.line(INDENT + "  ", f"{predicted} {basis}")
        else:
            page.line(head, Text(f"{name:14s} {wanted:14s} {predicted:38s} {basis:11s} ").append_text(mark))
    for number, line in enumerate(() if chosen.speed is None else load_lines(chosen.speed, confidence, embeds)):
        page.line("  Load     " if number == 0 else INDENT, line)
    page.blank()


def _unasked(goal: Goal, predicted: Quantity) -> tuple[str, str, str, str, Text]:
    """A figure that everybody wants to know, though no goal is on it."""
    return goal, "", show_interval(predicted, goal.unit), predicted.basis, Text("")


def _mark(goal: PlannedGoal, confidence: float) -> Text:
    """A tick for a goal that is met as surely as is asked; what is met by the predicted value only has its odds and no tick."""
    if not goal.met:
        return Text(f"✗{_missed(goal)}", "red" if _missed(goal) == "" else "yellow")
    odds = f" {show(goal.odds, 'odds')}" if goal.odds is not None and goal.odds < _CERTAIN else ""
    if not goal.sure(confidence):
        return Text(f"~{odds}, {show(confidence, 'odds')} asked", "yellow")
    return Text.assemble(("✓", "green"), (odds, "dim"))


def _missed(goal: PlannedGoal) -> str:
    """By how much a goal is missed that a plan was chosen with all the same: inside the band that nobody can tell."""
    if goal.missed_by is None or goal.band is None:
        return ""
    by, band = (
        (f"{100 * goal.missed_by:.2g} points", f"{100 * goal.band:.2g}")
        if goal.unit == "%"
        else apart(goal.missed_by, goal.band, goal.unit)
    )
    return f" misses by {by}, inside the band of {band}"


def _print_rejected(page: Page, rejected: Sequence[RejectedPlan]) -> None:
    for plan in rejected:
        page.line(INDENT, plan.candidate)
        page.line(INDENT + "  ", "; ".join(f"{reason.message}{_remedy(reason)}" for reason in plan.reasons[:2]), "dim")


def _remedy(reason: StatedReason) -> str:
    """What would take a reason away, as it may stand in the spec."""
    return f" ({reason.remedy})" if reason.remedy else ""


def _print_illegal(page: Page, document: PlanDocument) -> None:
    """What of the things that the spec asks for by name is illegal."""
    for number, kind in enumerate(document.illegal[:4]):
        head = "  Illegal  " if number == 0 else INDENT
        page.line(
            head,
            f"{kind.message}{f' ({kind.remedy})' if kind.remedy else ''}: {kind.candidates} candidate{'s' if kind.candidates > 1 else ''}",
        )
    if document.illegal:
        page.blank()
