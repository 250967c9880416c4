"""Holds `optimize check` against vLLM start-ups that nothing was fitted to or mended for, as a stranger would ask about them.

    python -m benchmarks.first_contact [PART OF AN ID]

Each row of `data/vllm_first_contact.jsonl` is what somebody published: card, version, command, and what the engine printed. No term of
`memory_fit.json` is fitted to them, but how far they are off is part of how wide intervals are (`fit_memory.beside`), and assumed terms of
`activations.py` name some (GB10's processes, others' memory up to 0.8): what is held now is held in sample, the error of a row's first asking
alone was not. What was learned from one is said in its `note`.
`loose`: what of that decides the figure is not in the publication. `met_before`: the report was known here already. `unexplained`: what is
still off, and what was excluded.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "data" / "vllm_first_contact.jsonl"
_GIB = 1 << 30


@dataclass(frozen=True)
class Contact:
    """What was said of a start-up's cache beside what it printed, in tokens, or in GiB where it printed only those."""

    row: dict[str, Any]
    said: float
    low: float
    high: float
    printed: float
    unit_bytes: float = _GIB

    @property
    def error(self) -> float:
        """Signed; of the budget where the engine refused for want of any cache."""
        return (self.said - self.printed) / (self.printed if self.printed > 0 else float(self.row["budget_gib"]))

    @property
    def missing_bytes(self) -> float:
        """Signed: of the cache that was said."""
        return (self.said - self.printed) * self.unit_bytes

    @property
    def held(self) -> bool:
        """Whether the interval holds what was printed."""
        return self.low <= self.printed <= self.high


def load_rows() -> list[dict[str, Any]]:
    """Every published start-up."""
    return [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]


def arguments(row: dict[str, Any]) -> list[str]:
    """Return what `optimize` is asked for a row."""
    flags = ["--gpu", row["gpu"], "--gpus", str(row["gpus"]), "--engine-version", row["vllm_version"]]
    if row.get("weights"):
        flags += ["--weights", row["weights"]]
    return ["check", "--json", *flags, "--", "vllm", "serve", *shlex.split(row["command"])]


def contact(row: dict[str, Any], answer: dict[str, Any]) -> Contact:
    """Hold an answer of `check --json` against its row."""
    by_tokens = row["kv_cache_tokens"] is not None
    figure = answer["kv_cache"]["tokens"] if by_tokens else answer["memory"]["kv_cache"]
    unit = 1 if by_tokens else _GIB
    printed = row["kv_cache_tokens"] if by_tokens else row["available_kv_gib"]
    each = answer["memory"]["kv_cache"]["value"] / figure["value"] if by_tokens and figure["value"] else unit
    return Contact(row, figure["value"] / unit, figure["low"] / unit, figure["high"] / unit, float(printed), each)


def summary(name: str, found: list[Contact]) -> str:
    """One line: rows, median and ninth decile of the error's size, and how many intervals hold."""
    sizes = sorted(abs(each.error) for each in found)
    middle, tail = statistics.median(sizes), sizes[int(0.9 * (len(sizes) - 1))]
    return f"{name}: {len(found)} rows, median {middle:.1%}, 90 % {tail:.1%}, held {sum(each.held for each in found) / len(found):.2f}"


def ask(row: dict[str, Any]) -> Contact | str:
    """Ask `optimize` about a row; what it says instead where it has no answer."""
    command = [sys.executable, "-m", "planner.cli", *arguments(row)]
    asked = {**os.environ, "HF_HUB_OFFLINE": "1"}
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=False, env=asked).stdout)
    return contact(row, answer) if answer.get("memory") else str(answer.get("error", {}).get("message", ""))


def main(part: str = "") -> None:
    """Ask every row and print the table."""
    found = []
    for row in load_rows():
        if part not in row["id"]:
            continue
        last = ask(row)
        if isinstance(last, str):
            print(f"{row['id']}: no answer: {last}")
            continue
        found.append(last)
        said = f"{last.said:,.2f} [{last.low:,.2f}..{last.high:,.2f}]"
        print(f"{row['id']}: {said} for {last.printed:,.2f}: {last.error:+.1%}, held {last.held}")
    new = [each for each in found if not each.row["met_before"]]
    batches = {each.row["collected"] for each in new}
    for name, chosen in (
        ("all", found),
        ("new", new),
        *((f"new, of {batch}", [each for each in new if each.row["collected"] == batch]) for batch in sorted(batches)),
        ("new, fully published", [each for each in new if not each.row["loose"]]),
        ("new, explained", [each for each in new if not each.row["unexplained"]]),
    ):
        if chosen:
            print(summary(name, chosen))


if __name__ == "__main__":
    main(*sys.argv[1:2])
