"""Which option for which group of matrices under a byte budget: the multiple-choice knapsack, solved exactly.

Units are groups of matrices that must agree (q/k/v, gate/up, the experts of a layer); each takes one of its options, an option
has bytes and a loss, what an engine cannot run is masked out. Minimise Σ loss subject to Σ bytes ≤ budget.

Method: dynamic programming over lists of undominated (bytes, loss) states, unit by unit (Nemhauser & Ullmann 1969), where a state
dies as soon as the linear relaxation of the units still to come shows that it cannot beat the best solution known (Dyer, Kayal &
Walker 1984). The relaxation is a greedy walk down the convex hulls of the options (Sinha & Zoltners 1979); cut at whole steps it
also completes every state to a feasible solution, which is where the best solution known comes from.

Float safety: losses are rounded once to integers of a quantum of 2^-44 of the largest possible total, so every sum is exact in
float64 and comparisons are not at the mercy of rounding. The result is optimal for these integers; in the losses given, no
choice can be better by more than `Allocation.tolerance` (one quantum a unit), far below any measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from passes.errors import DoesNotFitError, InputError
from passes.record import dataclass

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_RANGE = float(1 << 44)
#: Rounding in the relaxation stays far below this; losses are integers, so a bound above incumbent − 1 + slack proves.
_SLACK = 0.25
_MAX_STATES = 1 << 21


@dataclass(frozen=True, slots=True)
class Unit:
    """A group of matrices that take one option together: `bytes[j]` and `losses[j]` of option j; `legal` masks options out."""

    name: str
    bytes: tuple[int, ...]
    losses: tuple[float, ...]
    legal: tuple[bool, ...] | None = None


@dataclass(frozen=True, slots=True)
class Allocation:
    """The option of every unit. `gap`: 0.0 where optimality was proven, else how much better a choice could at most be."""

    choice: tuple[int, ...]
    bytes: int
    loss: float
    gap: float
    tolerance: float
    """Σ loss is within this of the true optimum's, because losses were rounded to a quantum."""
    states: int
    """The longest list of states that was kept: how hard the case was."""


@dataclass(frozen=True)
class _Options:
    """The undominated options of one unit, bytes ascending, integer losses descending; `index` into the unit's own."""

    bytes: Ints
    losses: Floats
    index: Ints


@dataclass(frozen=True)
class _Tail:
    """The relaxation of a run of units: breakpoints of a convex falling curve, least bytes first.

    Between breakpoints one unit moves along one edge of its hull; `unit[s]`, `option[s]` say where step s takes which unit.
    """

    bytes: Floats
    losses: Floats
    unit: Ints
    option: Ints


def allocate(units: Sequence[Unit], budget_bytes: int) -> Allocation:
    """Return the choice with the least total loss within the budget.

    Raises DoesNotFitError when even the smallest legal options exceed the budget, InputError on a unit without a legal option
    or a loss that is no finite number.
    """
    legal = [_legal(unit) for unit in units]
    least = sum(min(unit.bytes[j] for j in js) for unit, js in zip(units, legal, strict=True))
    if least > budget_bytes:
        raise DoesNotFitError(
            f"the smallest legal options take {least:,} bytes, the budget is {budget_bytes:,}",
            remedy=f"allow at least {least:,} bytes, or options with fewer bits",
        )
    spread = sum(
        max(u.losses[j] for j in js) - min(u.losses[j] for j in js) for u, js in zip(units, legal, strict=True)
    )
    quantum = max(spread / _RANGE, math.ulp(0.0)) if spread > 0 else 1.0
    options = [_undominated(unit, js, quantum) for unit, js in zip(units, legal, strict=True)]
    picks, gap, states = _solve(options, budget_bytes)
    choice = tuple(int(option.index[pick]) for option, pick in zip(options, picks, strict=True))
    return Allocation(
        choice,
        sum(unit.bytes[j] for unit, j in zip(units, choice, strict=True)),
        math.fsum(unit.losses[j] for unit, j in zip(units, choice, strict=True)),
        gap * quantum,
        len(units) * quantum,
        states,
    )


def _legal(unit: Unit) -> list[int]:
    if len(unit.bytes) != len(unit.losses) or (unit.legal is not None and len(unit.legal) != len(unit.bytes)):
        raise InputError(
            f"{unit.name}: bytes, losses and the mask of legal options differ in length",
            remedy="give one of each an option",
        )
    out = [j for j in range(len(unit.bytes)) if unit.legal is None or unit.legal[j]]
    if not out:
        raise InputError(f"{unit.name} has no legal option", remedy="allow another format for it, or leave it dense")
    for j in out:
        if not math.isfinite(unit.losses[j]) or unit.bytes[j] < 0:
            raise InputError(
                f"{unit.name}, option {j}: loss {unit.losses[j]}, {unit.bytes[j]} bytes", remedy="measure it again"
            )
    return out


def _undominated(unit: Unit, legal: Iterable[int], quantum: float) -> _Options:
    import numpy as np

    low = min(unit.losses[j] for j in legal)
    kept: list[tuple[int, int, int]] = []
    for size, loss, j in sorted((unit.bytes[j], round((unit.losses[j] - low) / quantum), j) for j in legal):
        if not kept or loss < kept[-1][1]:
            kept.append((size, loss, j))
    table = np.array(kept, dtype=np.int64)
    return _Options(table[:, 0], table[:, 1].astype(np.float64), table[:, 2])


def _hull(options: _Options) -> list[int]:
    """The options on the lower convex hull of (bytes, loss)."""
    size, loss = options.bytes, options.losses
    hull: list[int] = []
    for j in range(len(size)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (loss[b] - loss[a]) * float(size[j] - size[a]) < (loss[j] - loss[a]) * float(size[b] - size[a]):
                break
            hull.pop()
        hull.append(j)
    return hull


def _edges(options: Sequence[_Options], hulls: Sequence[list[int]]) -> _Tail:
    """The edges of all hulls, steepest gain a byte first: differences instead of the running sums of a tail."""
    import numpy as np

    rows = []
    for u, option in enumerate(options):
        for a, b in zip(hulls[u], hulls[u][1:], strict=False):
            more, gain = float(option.bytes[b] - option.bytes[a]), float(option.losses[b] - option.losses[a])
            rows.append((gain / more, u, b, more, gain))
    rows.sort()
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 5)
    return _Tail(table[:, 3], table[:, 4], table[:, 1].astype(np.int64), table[:, 2].astype(np.int64))


def _tail(edges: _Tail, options: Sequence[_Options], members: Sequence[int]) -> _Tail:
    import numpy as np

    inside = np.zeros(len(options), dtype=bool)
    inside[list(members)] = True
    kept = inside[edges.unit]
    first_bytes = float(sum(int(options[u].bytes[0]) for u in members))
    first_loss = float(sum(options[u].losses[0] for u in members))
    return _Tail(
        first_bytes + np.concatenate(([0.0], np.cumsum(edges.bytes[kept]))),
        first_loss + np.concatenate(([0.0], np.cumsum(edges.losses[kept]))),
        edges.unit[kept],
        edges.option[kept],
    )


def _solve(options: Sequence[_Options], budget: int) -> tuple[list[int], float, int]:
    """Position of each unit's option, the proven gap (in quanta) and the longest list."""
    import numpy as np

    hulls = [_hull(option) for option in options]
    edges = _edges(options, hulls)
    order = _order(options, _tail(edges, options, range(len(options))), budget)
    size, loss = np.zeros(1), np.zeros(1)
    history: list[tuple[Ints, Ints]] = []
    best, best_state, best_tail, best_steps = math.inf, 0, -1, 0
    open_bound, longest = math.inf, 1
    for position in range(len(order) + 1):
        tail = _tail(edges, options, order[position:])
        room = budget - size
        step = np.searchsorted(tail.bytes, room, side="right") - 1
        completed = loss + tail.losses[step]
        lowest = int(np.argmin(completed))
        if completed[lowest] < best:
            best, best_state, best_tail, best_steps = float(completed[lowest]), lowest, position, int(step[lowest])
        if position == len(order):
            break
        bound = loss + np.interp(room, tail.bytes, tail.losses)
        alive = np.flatnonzero(bound <= best - 1 + _SLACK)
        if len(alive) == 0:
            break
        if len(alive) > _MAX_STATES:
            ranked = alive[np.argsort(bound[alive], kind="stable")]
            open_bound = min(open_bound, float(bound[ranked[_MAX_STATES]]))
            alive = np.sort(ranked[:_MAX_STATES])
        rest = float(tail.bytes[0]) - float(options[order[position]].bytes[0])
        size, loss, parent, picked = _extend(size[alive], loss[alive], alive, options[order[position]], budget - rest)
        history.append((parent, picked))
        longest = max(longest, len(size))
    picks = _trace(
        options, order, history[:best_tail], best_state, best_steps, _tail(edges, options, order[best_tail:])
    )
    return picks, max(0.0, best - open_bound), longest


def _order(options: Sequence[_Options], tail: _Tail, budget: int) -> list[int]:
    """Units whose option is clear first, those that the relaxation nearly leaves open last: lists stay short for longest."""
    import numpy as np

    step = min(int(np.searchsorted(tail.bytes, float(budget), side="right")) - 1, len(tail.unit) - 1)
    if step < 0:
        return list(range(len(options)))
    price = -float(tail.losses[step + 1] - tail.losses[step]) / float(tail.bytes[step + 1] - tail.bytes[step])

    def clearness(option: _Options) -> float:
        reduced = np.sort(option.losses + price * option.bytes)
        return float(reduced[1] - reduced[0]) if len(reduced) > 1 else math.inf

    return sorted(range(len(options)), key=lambda u: (-clearness(options[u]), u))


def _extend(
    size: Floats, loss: Floats, origin: Ints, option: _Options, limit: float
) -> tuple[Floats, Floats, Ints, Ints]:
    """Every state with every option of one more unit, dominated ones and those that leave no room for the rest dropped."""
    import numpy as np

    sizes = (size[None, :] + option.bytes[:, None]).ravel()
    losses = (loss[None, :] + option.losses[:, None]).ravel()
    fits = np.flatnonzero(sizes <= limit)
    ranked = fits[np.lexsort((losses[fits], sizes[fits]))]
    lowest = np.minimum.accumulate(losses[ranked])
    fresh = np.concatenate(([True], losses[ranked][1:] < lowest[:-1]))
    kept = ranked[fresh]
    return sizes[kept], losses[kept], origin[kept % len(size)], kept // len(size)


def _trace(
    options: Sequence[_Options], order: Sequence[int], history: Sequence[tuple[Ints, Ints]],
    state: int, steps: int, tail: _Tail,
) -> list[int]:  # fmt: skip
    """The option of every unit of the best solution: decided units from the history, the others from the relaxation's steps."""
    picks = [0] * len(options)
    for done in range(len(history) - 1, -1, -1):
        parent, picked = history[done]
        picks[order[done]] = int(picked[state])
        state = int(parent[state])
    for unit, option in zip(tail.unit[:steps], tail.option[:steps], strict=True):
        picks[int(unit)] = int(option)
    return picks
