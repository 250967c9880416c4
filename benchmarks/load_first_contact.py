"""Holds `optimize check` against published runs of `vllm bench serve` that are in no fit, as a stranger would ask about them.

    python -m benchmarks.load_first_contact [PART OF AN ID]
    python -m benchmarks.load_first_contact --keep && python -m benchmarks.results

Each row of `data/load_first_contact.jsonl` is what somebody published: card, version, command, load and what was measured. Rows were written down
before their answers were asked, and stay out of `fit_speed`, but for one assumed constant that is read off eager ones of them
(`launch_layer_s`): for these, and since what all showed was mended, errors of today are no longer those of a first sight. A latency is held by
its median where that is printed, else by its mean, else by its 99th percentile. `ratio`: how far lengths differ to either side of their mean.
`ramp_s`: over how long clients come, one after the other. `loose`: what of that decides the figure is not in the publication. `met_before`:
the report was known here already. `contact`: 2 where rows came after the mends that the first ones brought.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measured
from benchmarks.results import keep
from benchmarks.tables import table
from targets.speed.rates import FIT

ROWS = Path(__file__).parent / "data" / "load_first_contact.jsonl"
#: A row's figures by those of an answer: the first that was published is held against it.
_FIGURES = {
    "TPOT": {"tpot_p50_ms": "tpot_p50_ms", "tpot_ms": "tpot_ms", "tpot_p99_ms": "tpot_p99_ms"},
    "TTFT": {"ttft_p50_ms": "ttft_p50_ms", "ttft_ms": "ttft_ms", "ttft_p99_ms": "ttft_p99_ms"},
    "tok/s": {"tok_s": "throughput_tok_s"},
}

_KEYS = {key for figures in _FIGURES.values() for key in figures.values()}


@dataclass(frozen=True)
class Contact:
    """What was said of one figure of a row beside what was measured."""

    row: dict[str, Any]
    name: str
    said: float
    low: float
    high: float
    measured: float

    @property
    def error(self) -> float:
        """Signed, of what was measured."""
        return self.said / self.measured - 1

    @property
    def held(self) -> bool:
        """Whether the interval holds what was measured."""
        return self.low <= self.measured <= self.high


_KINDS = {"alone": "one client", "closed loop": "closed loops", "rate": "rates", "burst": "bursts"}


def load_rows() -> list[dict[str, Any]]:
    """Every published run."""
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


def arguments(row: dict[str, Any]) -> list[str]:
    """Return what `optimize` is asked for a row."""
    asked = ["check", "--json", "--gpu", row["gpu"], "--gpus", str(row["gpus"])]
    asked += ["--input-tokens", str(row["input_tokens"]), "--output-tokens", str(row["output_tokens"])]
    for flag, value in (
        ("--engine-version", row["vllm_version"]),
        ("--num-prompts", row["requests"]),
        ("--max-concurrency", row["clients"]),
        ("--request-rate", "inf" if row["arrival"] == "burst" else row["rate"]),
        ("--concurrency-ramp-duration", row.get("ramp_s")),
    ):
        asked += [] if value is None else [flag, str(value)]
    if row["lengths"] == "alike" and (row["arrival"] != "closed" or "ratio" in row):
        asked += ["--random-range-ratio", str(row.get("ratio", 0))]
    return [*asked, "--", "vllm", "serve", *shlex.split(row["command"])]


def contacts(row: dict[str, Any], answer: dict[str, Any]) -> list[Contact]:
    """Hold an answer of `check --json` against its row, figure by figure."""
    found = []
    for name, figures in _FIGURES.items():
        for published, key in figures.items():
            if row.get(published):
                said = answer["speed"][key]
                found.append(Contact(row, name, said["value"], said["low"], said["high"], float(row[published])))
                break
    return found


def kind(row: dict[str, Any]) -> str:
    """Name how its requests came."""
    if row["arrival"] == "closed":
        return "alone" if row["clients"] == 1 else "closed loop"
    return "burst" if row["arrival"] == "burst" else "rate"


def summary(found: Sequence[Contact]) -> Iterator[str]:
    """Give of each figure the median error, and the share of intervals that hold; of fewer than three rows, how many there are."""
    for figure in _FIGURES:
        sizes = [each for each in found if each.name == figure]
        if len(sizes) < 3:
            yield f"{len(sizes)} rows"
            continue
        middle = statistics.median(abs(each.error) for each in sizes)
        yield f"{middle:.1%}, {sum(each.held for each in sizes) / len(sizes):.2f} of {len(sizes)}".replace("%", " %")


#: What rows have in common, as the page names it.
_GROUPS: Mapping[str, Callable[[dict[str, Any]], bool]] = {
    "all": lambda row: True,
    "not known here before": lambda row: not row["met_before"],
    "not known here before, and fully published": lambda row: not row["met_before"] and not row["loose"],
    "of the second contact": lambda row: row.get("contact") == 2,
    **{said: lambda row, name=name: kind(row) == name for name, said in _KINDS.items()},  # type: ignore[misc]
}


def summaries(found: Sequence[Contact], chosen: Mapping[str, Callable[[dict[str, Any]], bool]] = _GROUPS) -> str:
    """Return a table of the page: all rows, and by what they have in common."""
    groups = {name: [each for each in found if wanted(each.row)] for name, wanted in chosen.items()}
    rows = [(name, len({each.row["id"] for each in some}), *summary(some)) for name, some in groups.items() if some]
    return table(("rows", "n", "TPOT", "first token", "throughput"), rows)


def _asked(row: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "planner.cli", *arguments(row)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return dict(json.loads(done.stdout)) if done.stdout.strip() else {"error": {"message": done.stderr.strip()}}


def main() -> None:
    """Ask every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="", help="of the ids of the rows that are asked")
    parser.add_argument("--keep", action="store_true", help="keep the table for the page")
    parser.add_argument("--first-sight", action="store_true", help="keep these answers as those of a first sight")
    asked = parser.parse_args()
    found: list[Contact] = []
    rows = [row for row in load_rows() if asked.part in row["id"]]
    load_before, told = os.getloadavg()[0], {}
    with ThreadPoolExecutor(2) as pool:
        for row, answer in zip(rows, pool.map(_asked, rows), strict=True):
            if not answer.get("speed"):
                print(f"{row['id']}: no answer: {answer.get('error', {}).get('message', answer.get('exit_code'))}")
                continue
            held = contacts(row, answer)
            told[row["id"]] = {key: figure for key, figure in answer["speed"].items() if key in _KEYS and figure}
            found += held
            figures = (
                f"{e.name} {e.said:,.4g} [{e.low:,.4g}..{e.high:,.4g}] for {e.measured:,.4g} ({e.error:+.1%}{'' if e.held else ', not held'})"
                for e in held
            )
            print(f"{row['id']} ({kind(row)}): " + "; ".join(figures))
    print(f"\n{summaries(found)}")
    if asked.keep and not asked.part:
        keep("load-first-contact", "python -m benchmarks.load_first_contact --keep", (ROWS, FIT), summaries(found))
    if asked.first_sight:
        measured.write(
            "load-first-sight", f"python -m benchmarks.load_first_contact {asked.part} --first-sight", told, load_before
        )


if __name__ == "__main__":
    main()
