"""`optimize apply specs/*.yaml`: many specs or plans, each into a folder of its own; one that fails does not stop the others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from functools import partial
from pathlib import Path

import networkx as nx

from passes.blocks.devices import AUTO, compute_devices
from passes.errors import InputError, TightfitError
from passes.record import dataclass
from passes.steps.executor import HERE, Executor
from passes.steps.progress import Progress
from planner.apply import apply, default_folder
from planner.machine import Computing
from planner.plan.codec import FORMAT_VERSION
from planner.setup.mistakes import as_told

#: Exit code of a defect of ours, as the command line's.
_DEFECT = 1


@dataclass(frozen=True, slots=True)
class Order:
    """One spec or plan to be applied: where its result goes, and where its unfinished work."""

    what: Path
    out: Path
    work: Path | None = None
    replace: bool = False
    device: str = AUTO


@dataclass(frozen=True, slots=True)
class Member:
    """What became of one spec or plan. `exit_code`: as `apply` of it alone ends; `said`: what was made, or the error."""

    what: str
    out: str
    exit_code: int
    said: str
    remedy: str | None = None
    seconds: float = 0.0

    @property
    def made(self) -> bool:
        """Whether a result is there that keeps its promises."""
        return self.exit_code == 0


@dataclass(frozen=True, slots=True)
class Fleet:
    """What became of all of them, in the order they were asked."""

    members: tuple[Member, ...]
    format_version: str = field(default=FORMAT_VERSION, kw_only=True)

    @property
    def exit_code(self) -> int:
        """That of the first which failed, else of the first that misses a goal; 0 where every result holds."""
        codes = [member.exit_code for member in self.members if not member.made]
        return next((code for code in codes if code != 4), codes[0] if codes else 0)


@contextmanager
def carrying(whats: Sequence[Path], name: str, device: str) -> Iterator[Executor]:
    """Yield the executor of that name, `local` or `ray`, for one result, on all that `device` means, or several, each on one card. Where
    none of them is there, nothing is started to say so. Raises InputError for a card by its number on Ray, which deals them out itself.
    """
    if name != "ray" or not any(map(os.path.exists, whats)):
        yield HERE
        return
    if ":" in device:
        raise InputError(f"on Ray {device} is not this process's to choose", remedy="name cuda, cpu or auto")
    from passes.steps.on_ray import on_ray

    computing = compute_devices(device)
    cards = 0 if computing[0].type == "cpu" else 1 if len(whats) > 1 else len(computing)
    with on_ray(cards) as executor:
        yield executor


def orders(whats: Sequence[Path], parent: Path | None, work: Path | None) -> tuple[Order, ...]:
    """Return an order for each of several specs or plans: results in `parent` (default: here), unfinished work in `work`, by their names.

    Raises InputError where two would have one folder.
    """
    found: dict[Path, Order] = {}
    for what in whats:
        out = (parent or Path()) / default_folder(what).name
        if out in found:
            raise InputError(
                f"{found[out].what} and {what} would both be made in {out}",
                remedy="rename one, or apply it by itself with -o",
            )
        found[out] = Order(what, out, None if work is None else work / out.name)
    return tuple(found.values())


def apply_all(
    asked: Sequence[Order], executor: Executor = HERE, progress: Callable[[Progress], None] = lambda event: None
) -> Iterator[Member]:
    """Apply each, and give what became of it as it ends. `progress`: of those that are made in this process."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for order in asked:
        make = partial(_applied_apart, order, _threads()) if executor.apart else partial(applied, order, progress)
        graph.add_node(str(order.what), make=make)
    places = {str(order.what): order.out for order in asked}
    for ended in executor.carry_out(graph):
        if ended.error is not None:  # a worker that was lost
            yield _failed(ended.name, places[ended.name], ended.error)
        else:
            yield ended.value


def applied(order: Order, progress: Callable[[Progress], None] = lambda event: None) -> Member:
    """Apply one, and say what became of it: an error is told, not raised, and so is a defect of ours."""
    began = time.monotonic()
    try:
        result = apply(
            order.what, order.out, work=order.work, replace=order.replace, progress=progress, on=Computing(order.device)
        )  # fmt: skip
        member = Member(
            str(order.what), str(order.out), 0 if result.holds else 4, result.plan.decision.label, _missed(result.holds)
        )  # fmt: skip
    except Exception as error:
        if (told := as_told(error, "`optimize apply`")) is not None:
            member = _failed(str(order.what), order.out, told)
        elif os.environ.get("TIGHTFIT_DEBUG"):
            raise
        else:
            said = f"internal error: {type(error).__name__}: {error}"
            member = Member(str(order.what), str(order.out), _DEFECT, said, "apply it alone with TIGHTFIT_DEBUG=1")
    return replace(member, seconds=round(time.monotonic() - began, 1))


def _threads() -> int:
    """Those of this process. Asked only where others compute: a name that is no file is refused before torch is loaded."""
    import torch

    return torch.get_num_threads()


def _applied_apart(order: Order, threads: int) -> Member:
    """Apply one in this process, with so many threads as sums depend on them."""
    import torch

    torch.set_num_threads(threads)
    return applied(order)


def _failed(what: str, out: Path, error: TightfitError) -> Member:
    where = f"{error.location}: " if error.location else ""
    return Member(what, str(out), error.exit_code, f"{where}{error.message}", error.remedy)


def _missed(holds: bool) -> str | None:
    return None if holds else "`optimize show` says which promise or goal is missed"
