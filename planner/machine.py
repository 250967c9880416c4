"""What computes on this machine, and whether it has what a result was planned for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from passes.blocks.devices import AUTO, PROCESSOR, built_for_cards, device_name, hidden_cards, listed_cards
from passes.errors import InputError, Told
from passes.record import dataclass
from passes.steps.executor import HERE, Executor
from targets.engines.engine import find_engine
from targets.gpu import Gpu, cards_named, find_gpu, fold, inline_gpu, this_cpu, unlisted_gpu
from targets.machine.devices import installed_gpus

if TYPE_CHECKING:
    import torch

    from planner.plan.document import PlanDocument

_REMEDY = "verify on the machine that it was planned for: copy the result's folder there; or plan for this one"


@dataclass(frozen=True, slots=True)
class Computing(metaclass=Told):
    """Where the work is done. `device`: what computes, `auto` (every card, else the processor), `cpu`, `cuda` (every card), `cuda:1`;
    `executor`: whose processes carry out the steps.
    """

    device: str = AUTO
    executor: Executor = HERE


#: All that is here, by this process.
ALL_HERE = Computing()


def computing(asked: str = AUTO) -> Gpu:
    """Return what computes on this machine when a device is asked for by its name: a card, of several the first, or the processor.

    As far as it can be seen without torch: by what the driver lists, by CUDA_VISIBLE_DEVICES, by the version of torch. Raises InputError
    for a name that is none, and for a card that is not here.
    """
    name = device_name(asked)
    cards = [] if hidden_cards(name) or not built_for_cards() else _visible(_installed())
    number = int(name.partition(":")[2] or 0)
    if number < len(cards):
        return _card(cards[number])
    if name not in (AUTO, PROCESSOR):
        seen = f"{len(cards)} card{'s are' if len(cards) > 1 else ' is'} seen here" if cards else "no card is seen here"
        raise InputError(f"--device {asked}: {seen}", remedy="leave --device out, or --device cpu")
    return this_cpu()


def computing_on(device: torch.device) -> Gpu:
    """Return what a device of torch's is: the catalog's card of its name, else one with its memory; or the processor."""
    if device.type == "cpu":
        return this_cpu()
    import torch

    return _card(torch.cuda.get_device_name(device), int(torch.cuda.get_device_properties(device).total_memory))


@cache
def _installed() -> tuple[str, ...]:
    """This machine's cards, looked at once: they are asked through their driver."""
    return installed_gpus()


def _visible(cards: Sequence[str]) -> list[str]:
    """The cards that CUDA_VISIBLE_DEVICES leaves, in its order, where it names them by number."""
    named = listed_cards()
    if not named or not all(part.isdigit() for part in named):
        return list(cards)
    return [cards[int(part)] for part in named if int(part) < len(cards)]


def _card(name: str, memory_bytes: int | None = None) -> Gpu:
    try:
        return find_gpu(name)
    except InputError:
        return unlisted_gpu(name, memory_bytes)


def require_cards(plan: PlanDocument, installed: Sequence[str]) -> None:
    """Refuse a plan for NVIDIA cards that are not among the `installed` ones, by the names that NVML prints.

    A plan for a card of a size, or for one given by its facts, is content with any card of that memory.
    """
    if _build(plan) == "cpu":
        return
    card, named = _planned(plan)
    if card.vendor != "NVIDIA":
        return  # NVML, which says what is here, knows no others
    needed = plan.decision.settings.gpus
    found = sum(_stands_for(card, named, name) for name in installed)
    if found >= needed:
        return
    wanted = f"{needed} × {card.name}" if needed > 1 else card.name
    there = ", ".join(f"{count} × {name}" if count > 1 else name for name, count in Counter(installed).items())
    raise InputError(
        f"planned for {wanted}, {found or 'none'} here (this machine has {there or 'no card'})", remedy=_REMEDY
    )


def require_build(plan: PlanDocument, build: str | None, python: object) -> None:
    """Refuse an engine that is known to be built for something else than the plan: `cpu` or `cuda`; None says nothing."""
    wanted = _build(plan)
    if build is None or build == wanted:
        return
    from targets.serve.engine_build import BUILDS

    raise InputError(
        f"planned for {BUILDS[wanted]}, but {python} has {BUILDS[build]}",
        remedy=f"name the Python that has {BUILDS[wanted]} with --engine or TIGHTFIT_ENGINE",
    )


def _build(plan: PlanDocument) -> str:
    return find_engine(plan.decision.engine.name).device


def _planned(plan: PlanDocument) -> tuple[Gpu, bool]:
    """The card of a plan, and whether it is that card by name, not by its size or facts alone."""
    wanted = plan.spec.target.gpu
    if isinstance(wanted, Mapping):
        return inline_gpu(wanted), False
    card = find_gpu(plan.lock.gpu.name if wanted == "auto" else wanted)
    return card, not card.name.startswith("generic ")


def _stands_for(card: Gpu, named: bool, installed: str) -> bool:
    """Whether an installed card will do; one that the catalog does not know is taken at its name, or as large enough."""
    try:
        here = cards_named(installed)
    except InputError:
        return not named or fold(installed) == fold(card.name)
    return any(each.name == card.name if named else each.memory_bytes.high >= card.memory_bytes.low for each in here)
