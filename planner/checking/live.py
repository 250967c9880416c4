"""A checked question on the machine that is here: whether its cards are there, free enough, and joined well enough. Yes, no, or how."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from passes.errors import InputError, Reason, ReasonKind
from planner.check import CheckResult
from planner.choice.question import Question
from targets.cards import Cards, tightest
from targets.gpu import Gpu, card_seen, this_cpu
from targets.machine.live import LiveCard, LiveMachine

_GIB = 1 << 30
#: What an engine's own CUDA context takes before it looks at what is free: 0.3 to 0.5 GiB, by card and driver.
_CONTEXT = int(0.4 * _GIB)


def cards_of(machine: LiveMachine, wanted: int, named: str | Mapping[str, Any] | None) -> Cards:
    """Return the first `wanted` cards of a machine as what a model spread over them may count on; the processor, where it is named.

    Raises InputError where the machine has no card that answers.
    """
    if isinstance(named, str) and named.strip().lower() == "cpu":
        return Cards(this_cpu())
    if not machine.cards:
        hidden = f"CUDA_VISIBLE_DEVICES hides all {machine.hidden}" if machine.hidden else None
        raise InputError(
            f"no card of this machine can be used: {hidden or machine.silent or 'there is none'}",
            remedy="mend that, or name a card with --gpu; --gpu cpu is this machine's processor",
        )
    return Cards(tightest([seen(card) for card in machine.cards[: max(1, wanted)]]))


def seen(card: LiveCard) -> Gpu:
    """Return the card as a target, with the memory that its driver says."""
    capability = int(card.capability.replace(".", "")) if card.capability else None
    return card_seen(card.name, card.total_bytes, capability)


def on_machine(result: CheckResult, question: Question, machine: LiveMachine) -> CheckResult:
    """Return the answer with what this machine has against it, and what is to be known of it."""
    if question.gpu.is_cpu:
        return replace(result, here=tuple(_host(question, machine)))
    parallel = question.settings.parallel
    used = machine.cards[: parallel.gpus]
    reasons = (
        *_missing(machine, parallel.gpus), *_joined(used, parallel.gpus), *_occupied(question, result, used),
    )  # fmt: skip
    return replace(result, here=reasons, notes=(*result.notes, *_notes(question, machine, used)))


def _host(question: Question, machine: LiveMachine) -> Iterator[Reason]:
    """Whether the machine's memory is free, for an engine on its processor."""
    needed = question.outcome().memory.memory.total.value
    if needed > machine.memory_free_bytes:
        message = f"{_gib(needed)} of memory are needed, {_gib(machine.memory_free_bytes)} are free on this machine"
        yield Reason("not_enough_free", message, "stop other programs", kind=ReasonKind.TOO_LARGE)


def _missing(machine: LiveMachine, wanted: int) -> Iterator[Reason]:
    if len(machine.cards) < wanted:
        there = f"{len(machine.cards)} here" + (
            f", {machine.hidden} more hidden by CUDA_VISIBLE_DEVICES" if machine.hidden else ""
        )
        yield Reason(
            "too_few_cards",
            f"{wanted} cards are needed, {there}",
            f"--tp {len(machine.cards) or 1}, or a larger machine",
        )


def _joined(cards: Sequence[LiveCard], wanted: int) -> Iterator[Reason]:
    """CUDA shows a process one slice only."""
    if wanted > 1 and any(card.is_slice for card in cards):
        yield Reason(
            "slices_do_not_join",
            "slices of cards (MIG) do not work together: CUDA shows a process one of them",
            "--tp 1, or whole cards",
        )


def _occupied(question: Question, result: CheckResult, cards: Sequence[LiveCard]) -> Iterator[Reason]:
    """Cards of which too little is free for what the engine asks at its start."""
    memory = result.outcome.memory.memory
    share_taken = question.engine.takes_share
    explicit = question.settings.kv_cache_memory_bytes is not None
    around = memory.weights + memory.activations + memory.non_torch + memory.cuda_graphs
    whole = (around + memory.kv_cache if explicit else memory.total).value
    for card in cards:
        gpu = seen(card)
        asked_share = memory.budget.value / question.gpu.memory_bytes.value
        asked = asked_share * gpu.memory_bytes.value if share_taken and not explicit else whole
        free = max(0.0, min(gpu.memory_bytes.value, card.free_bytes) - _CONTEXT)
        if asked <= free:
            continue
        share = math.floor(100 * free / gpu.memory_bytes.value) / 100
        yield Reason(
            "not_enough_free",
            f"card {card.index} ({card.name}): {_gib(asked)} are asked for at the start, {_gib(free)} are free; {_held(card)}",
            _how(question, share) if share_taken and not explicit else "stop what holds it",
            {"card": card.index, "free_bytes": int(free), "asked_bytes": int(asked)},
            ReasonKind.TOO_LARGE,
        )


def _held(card: LiveCard) -> str:
    """Who holds a card's memory, and how much of it nobody names."""
    named = sum(holder.used_bytes or 0 for holder in card.holders)
    rest = card.used_bytes - named
    told = [str(holder) for holder in card.holders]
    if rest > _GIB // 4 or not told:
        told.append(f"{_gib(rest)} are held by the driver, a desktop, or programs that it does not name")
    return ", ".join(told)


def _how(question: Question, share: float) -> str:
    """What would do: less of the card, where the model fits that, else what holds the rest must go."""
    stop = "stop what holds it"
    if share <= 0:
        return stop
    less = question.changed({"gpu_memory_utilization": share}).outcome()
    if less.fits:
        return f"--gpu-memory-utilization {share:g} fits beside them; or {stop}"
    context = less.memory.kv.max_context
    shorter = (
        f", or --gpu-memory-utilization {share:g} with a context of {context:,}"
        if less.memory.memory.kv_cache.value > 0 and context
        else ""
    )
    return f"{stop}{shorter}"


def _notes(question: Question, machine: LiveMachine, cards: Sequence[LiveCard]) -> Iterator[str]:
    if len({(card.name, card.total_bytes) for card in cards}) > 1:
        yield (
            f"unlike cards ({', '.join(card.name for card in cards)}): the smallest decides; CUDA numbers the fastest first unless "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    for card in cards:
        if card.display:
            yield f"card {card.index} drives a screen: a desktop takes up to 1 GiB more of it when it is used; --reserve keeps it free"
        if card.pcie and card.pcie_most and _lanes(card.pcie) < _lanes(card.pcie_most):
            yield f"card {card.index} is on {card.pcie} of {card.pcie_most}: loading and transfers between cards are slower"
    if len(cards) > 1 and not any(card.links for card in cards):
        yield "no NVLink is up between the cards: they speak over PCIe"
    if machine.wsl:
        yield "Windows' Linux (WSL): Windows takes its share of the card, programs there are not named, pinned memory is limited"
    needs = question.engine.built_for(question.settings.version)
    if needs is not None and machine.maker == "NVIDIA" and machine.cuda and int(machine.cuda.split(".")[0]) < needs:
        yield (
            f"driver {machine.driver} runs CUDA up to {machine.cuda}; this version's wheel on PyPI is built for CUDA {needs}: update the "
            "driver, or install its build for an older CUDA"
        )


def _lanes(link: str) -> int:
    return int(link.rpartition("x")[2])


def _gib(value: float) -> str:
    return f"{value / _GIB:.1f} GiB"
