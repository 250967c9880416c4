"""The answer of `check`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from passes.ir.purpose import Purpose, purpose_named
from planner.choice.goals import MISSED
from planner.cli.tables.page import Page
from planner.cli.tables.parts import load_lines, size, tick
from planner.figures import show

if TYPE_CHECKING:
    from planner.check import CheckDocument
    from targets.machine.live import LiveMachine


#: In front of every line.
_MARGIN = "  "


def print_check(console: Console, document: CheckDocument) -> None:
    """Print the answer of `check`."""
    page = Page(console)
    cards = f"{document.gpus} × {document.gpu}" if document.gpus > 1 else document.gpu
    asked = f"{document.model} on {cards} with {document.engine}"
    if not document.modelled:
        page.line(_MARGIN, Text.from_markup(f"{escape(asked)}: [bold yellow]not known[/]"))
        for reason in document.reasons:
            page.line(_MARGIN, reason.message)
        return
    verdict = "[bold green]fits[/]" if document.fits else f"[bold red]{_short(document)}[/]"
    page.line(_MARGIN, Text.from_markup(f"{escape(asked)}: {verdict} (confidence {show(document.confidence, 'odds')})"))
    memory, kv = document.memory, document.kv_cache
    left = memory.kv_cache.value
    cache = f"{size(left)} left for the KV cache" if left >= 0 else f"{size(-left)} too much before any KV cache"
    terms = {
        "weights": memory.weights, "activations": memory.activations, "non torch": memory.non_torch, "cuda graphs": memory.cuda_graphs,
    }  # fmt: skip
    parts = [f"{name} {size(term.value)}" for name, term in terms.items() if term.value]
    page.line(_MARGIN, f"{'   '.join(parts)}   of {size(memory.budget.value)}: {cache}")
    requests = kv.max_concurrency.value
    if math.isfinite(requests) and left >= 0:
        longest = f"longest context {kv.max_context:,} for one"
        page.line(_MARGIN, f"{kv.tokens.value:,.0f} KV tokens, {_at_once(document)}, {longest}")
    elif left >= 0:
        page.line(_MARGIN, "keeps no cache: as many requests at once as the engine takes (max_num_seqs)")
    for line in _speed_lines(document):
        page.line(_MARGIN, line)
    goals = {goal.name for goal in document.goals}
    told = {name: each.remedy for each in document.reasons if (name := each.code.removesuffix(MISSED)) in goals}
    for goal in document.goals:
        near = goal.kept and not goal.met
        mark = "[yellow]~[/]" if near else tick(goal.met)
        said = f"{goal.name}: {show(goal.predicted.value, goal.unit)}, asked {show(goal.wanted, goal.unit)}"
        said += ", missed by less than the band" if near else ""
        mended = told.get(goal.name) if not goal.met else None
        page.line(_MARGIN, Text.from_markup(f"{mark} {escape(said + (f' → {mended}' if mended else ''))}"))
    for reason in document.reasons:
        if reason.code.removesuffix(MISSED) in told:
            continue
        said = reason.message + (f" → {reason.remedy}" if reason.remedy else "")
        mark = "[yellow]?[/]" if reason.code == "quality_not_judged" else "[red]✗[/]"
        page.line(_MARGIN, Text.from_markup(f"{mark} {escape(said)}"))
    if document.meets is False and not document.remedies:
        page.line(
            2 * _MARGIN,
            "no change of one kind that was tried keeps all that is asked: optimize plan weighs them together",
        )
    for remedy in document.remedies:
        would = "fits more surely" if document.fits and document.meets is not False else "what would do"
        page.line(2 * _MARGIN, f"{would}: {remedy.message}")
    for note in document.notes:
        page.line(_MARGIN, f"note: {note}", style="dim")


def _at_once(document: CheckDocument) -> str:
    """Say how many requests run at once: what the cache holds of the whole context, or the fewer that the engine runs, and who waits."""
    held, most = document.kv_cache.max_concurrency.value, document.most_at_once
    if most is None or held <= most:
        return f"{held:.1f} requests at once"
    waiting = document.load.concurrency - most
    waits = f", {waiting:,} of {document.load.concurrency:,} wait" if waiting > 0 else ""
    return f"room for {held:.1f} requests, of which the engine runs {most:,} at once{waits}"


def _speed_lines(document: CheckDocument) -> Iterator[str]:
    """Say how fast it is, and for which requests; of a model that embeds texts how long one takes, since it decodes nothing."""
    speed, load = document.speed, document.load
    first, decode = show(speed.ttft_ms.value, "ms"), speed.decode_tok_s_per_request
    clients = "1 client" if load.concurrency == 1 else f"{load.concurrency:,} clients"
    if load.request_rate is not None:
        clients = f"{load.request_rate:g} requests/s"
    if load.embeds:
        what = ("pair", "ranked") if purpose_named(document.model) is Purpose.SCORE else ("text", "embedded")
        yield f"a {what[0]} of {load.input_tokens:,} tokens is {what[1]} in {first} ({speed.ttft_ms.basis}), {clients}; nothing is decoded"
        return
    lengths = f"{load.input_tokens:,} tokens in, {load.output_tokens:,} out"
    ran = "" if document.starts else "if it ran: "
    yield f"{ran}TTFT {first}   decode {show(decode.value, 'tok/s')} ({decode.basis}) for {lengths}, {clients}"
    yield from load_lines(speed, None)


def _short(document: CheckDocument) -> str:
    """What comes of what does not fit: the engine starts and requests are too many, refuses though the memory does, or has too little."""
    if document.starts:
        return "starts, does not hold the requests that are asked"
    return "does not start" if document.margin.value >= 0 else "does not fit"


def print_machine(console: Console, machine: LiveMachine) -> None:
    """Print what is here: each card with what is free of it and who holds the rest."""
    driver = f", driver {machine.driver} (CUDA {machine.cuda})" if machine.driver else ""
    memory = f"{size(machine.memory_free_bytes)} of {size(machine.memory_bytes)} free"
    page = Page(console)
    page.line(_MARGIN, f"This machine: {machine.cpu}, {machine.cores} cores, {memory}{driver}")
    if machine.silent:
        page.line(_MARGIN, machine.silent, style="yellow")
    for card in machine.cards:
        facts = (
            f"compute capability {card.capability}" if card.capability else None, card.pcie,
            f"{card.links} NVLinks" if card.links else None, "ECC" if card.ecc else None, "drives a screen" if card.display else None,
        )  # fmt: skip
        told = ", ".join(fact for fact in facts if fact)
        page.line(
            _MARGIN,
            f"card {card.index}: {card.name}, {size(card.free_bytes)} of {size(card.total_bytes)} free{f'  ({told})' if told else ''}",
        )
        for holder in card.holders:
            page.line(2 * _MARGIN, str(holder), style="dim")
