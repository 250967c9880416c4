"""Tables of how far off the law of quality is, and how often its intervals hold, on rows whose source no fit saw; nothing is stored.

python -m benchmarks.quality_coverage && python -m benchmarks.results
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks import fit_quality
from benchmarks.fit_quality import Residual, coverage, cross_validate, named, publication, spreads
from benchmarks.quality_rows import DATA, loss_rows
from benchmarks.results import keep
from benchmarks.stored_tables import KINDS_SAY
from benchmarks.tables import percent, table
from planner.quality import law as quality_law

_BY = "python -m benchmarks.quality_coverage"
_HEADS = ("rows", "covered", "median error in ln", "half width in ln")
Groups = Mapping[str, Mapping[str, float]]
Widths = Mapping[str, Mapping[str, float]]


def kinds(groups: Groups) -> str:
    """Return what is covered by size of the model and kind of loss."""
    sizes = sorted((name for name in groups if name.endswith(" B")), key=lambda band: float(band.split("–")[0]))
    said = [
        *((name, name) for name in sizes),
        *((name, KINDS_SAY[name]) for name in KINDS_SAY if name in groups),
        ("all", "all"),
    ]
    return table(("", *_HEADS), [_row(label, groups[name]) for name, label in said])


def methods(groups: Groups) -> str:
    """Return the same by method."""
    found = {name.removeprefix("by "): line for name, line in groups.items() if name.startswith("by ")}
    return table(("method", *_HEADS), [_row(name, line) for name, line in _most_first(found)])


def sources(groups: Groups) -> str:
    """Return the same by the source that was left out."""
    others = {"all", *KINDS_SAY, *(name for name in groups if name.endswith(" B") or name.startswith("by "))}
    found = {name: line for name, line in groups.items() if name not in others}
    return table(("source", *_HEADS), [_row(name, line) for name, line in _most_first(found)])


def _most_first(found: Groups) -> list[tuple[str, Mapping[str, float]]]:
    return sorted(found.items(), key=lambda entry: (-entry[1]["rows"], entry[0]))


def _row(label: str, line: Mapping[str, float]) -> tuple[object, ...]:
    return (
        label,
        line["rows"],
        percent(line["coverage"]),
        f"{line['median_ln_error']:.2f}",
        f"{line['half_width_ln']:.2f}",
    )


def own(residuals: Sequence[Residual], widths: Widths) -> str:
    """Return what was measured here beside a prediction that knew none of it."""
    return table(
        ("model", "what was done", "predicted", "measured", "inside"), sorted(_measured_here(residuals, widths))
    )


def _measured_here(residuals: Sequence[Residual], widths: Widths) -> Iterator[tuple[str, ...]]:
    for residual in residuals:
        row = residual.row
        if row.source == "own":
            low, high = residual.interval(quality_law.half_width(widths, row.cause, row.traits, residual.tier))
            inside = "yes" if low <= row.rise <= high else "no"
            yield (
                row.model,
                named(row.cause),
                f"{residual.value:.3f} ({low:.3f} … {high:.3f})",
                f"{row.rise:.4f}",
                inside,
            )


def main() -> None:
    """Hold each source out, and keep the tables."""
    residuals = cross_validate(list(loss_rows()), lambda row: publication(row.source))
    widths = spreads(residuals)
    groups = coverage(residuals, widths)
    files: tuple[Path, ...] = (
        Path(fit_quality.__file__),
        *(DATA / f"{name}.jsonl" for name in ("quality_refs", "prune_refs", "prune_recovery", "quality_own")),
    )
    for name, text in (
        ("quality-coverage", kinds(groups)), ("quality-methods", methods(groups)), ("quality-sources", sources(groups)),
        ("quality-own", own(residuals, widths)),
    ):  # fmt: skip
        keep(name, _BY, files, text)
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
