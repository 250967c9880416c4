"""The candidates of a plan that one may choose among, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from passes.record import dataclass
from planner.cli.tables.page import INDENT, Page
from planner.figures import ALIKE, all_apart
from planner.quality.expected import growth

if TYPE_CHECKING:
    from planner.plan.document import PlanDocument
    from planner.plan.parts.others import ParetoPlan
    from planner.quality.expected import Quality
    from targets.engines.engine import Memory, SpeedEstimate

#: Rows of the table of choices: at least so many where there are candidates, and at most.
_LEAST_ROWS, _MOST_ROWS = 3, 6


@dataclass(frozen=True)
class _Choice:
    """A row of the table of choices."""

    mark: str
    candidate: str
    memory: Memory
    speed: SpeedEstimate | None
    quality: Quality
    said: str
    ranked: SpeedEstimate | None
    """Its speed by the formula, which ranks."""


def _figures(row: _Choice) -> tuple[float | None, ...]:
    """What stands in `_COLUMNS`; None where it is not known."""
    speed = row.speed
    rates: tuple[float | None, ...] = (None,) * 3 if speed is None else (
        speed.decode_tok_s_per_request.value, speed.throughput_tok_s.value, speed.ttft_ms.value
    )  # fmt: skip
    return (growth(row.quality.log_ppl_increase.value), *rates, row.memory.total.value)


#: Heading, unit and width of the columns; those of tokens are left out of a model that writes none.
_COLUMNS = (
    ("perplexity", "%", 10),
    ("a client", "tok/s", 10),
    ("all", "tok/s", 11),
    ("TTFT", "ms", 8),
    ("memory", "B", 10),
)


def print_choices(page: Page, document: PlanDocument) -> None:
    """Print the chosen candidate beside others of the Pareto set, and where these are few those that come next, with what they miss."""
    rows = list(_choices(document))
    if len(rows) < 2:
        return
    simulated = all(row.speed is not None and row.speed.e2e_p95_ms is not None for row in rows)
    rows = rows if simulated else [replace(row, speed=row.ranked or row.speed) for row in rows]
    scale = "all as simulated" if simulated else "all by the formula, which ranks"
    asked = [n for n, (_, unit, _) in enumerate(_COLUMNS) if unit != "tok/s" or document.spec.workload.asked.decodes]
    columns = [_column([_figures(row)[n] for row in rows], _COLUMNS[n][1]) for n in asked]
    heads_of = [(name, width) for name, _, width in (_COLUMNS[n] for n in asked)]
    if page.narrow:
        page.line("  Choices  ", " · ".join(name for name, _ in heads_of), "dim")
    else:
        heads = "  ".join(f"{name:>{width}s}" for name, width in heads_of)
        page.line("  Choices  ", f"{heads}  candidate ({scale})", "dim")
    for row, cells in zip(rows, zip(*columns, strict=True), strict=True):
        if page.narrow:
            page.line(f"         {row.mark} ", f"{row.candidate} ({row.said})")
            page.line(INDENT + "  ", " · ".join(cells))
        else:
            shown = "  ".join(f"{cell:>{width}s}" for cell, (_, width) in zip(cells, heads_of, strict=True))
            page.line(f"         {row.mark} {shown}  ", f"{row.candidate} ({row.said})")
    page.blank()


def _column(values: Sequence[float | None], unit: str) -> list[str]:
    """A column's figures, told apart."""
    shown = iter(all_apart([value for value in values if value is not None], unit, ALIKE))
    return ["-" if value is None else next(shown) for value in values]


def _choices(document: PlanDocument) -> Iterator[_Choice]:
    chosen = document.chosen
    own = [row for row in document.pareto if chosen is not None and row.candidate == chosen.label]
    others = _shown([row for row in document.pareto if row not in own])
    for mark, rows in (("►", own), (" ", others)):
        yield from (_Choice(mark, r.candidate, r.memory, r.speed, r.quality, r.making, r.ranked) for r in rows)
    shown = {row.candidate for row in (*own, *others)}
    left = _LEAST_ROWS - len(shown)
    for row in document.rejected:
        if left <= 0 or row.candidate in shown or row.speed is None:
            continue
        if row.memory is not None and row.quality is not None:
            left -= 1
            yield _Choice(" ", row.candidate, row.memory, row.speed, row.quality, row.reasons[0].message, row.ranked)


def _decoding(row: ParetoPlan) -> float:
    speed = row.ranked or row.speed
    return 0.0 if speed is None else speed.decode_tok_s_per_request.value


def _shown(rows: Sequence[ParetoPlan]) -> list[ParetoPlan]:
    """At most five rows: the extremes in quality, speed and memory, then others in the order of quality."""
    if not rows:
        return []
    ordered = sorted(rows, key=lambda row: row.quality.log_ppl_increase.value)
    fastest = max(rows, key=_decoding)
    smallest = min(rows, key=lambda row: row.memory.total.value)
    picked: Mapping[str, ParetoPlan] = {row.candidate: row for row in (ordered[0], fastest, smallest, *ordered)}
    return sorted(list(picked.values())[: _MOST_ROWS - 1], key=lambda row: row.quality.log_ppl_increase.value)
