"""Figures of one run of a benchmark that cannot be made of what is stored: kept with the day, the commit and the machine that they are of,
in `benchmarks/data/measured/NAME.json`. `benchmarks.measured_tables` makes tables of them.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from passes.record import dataclass

ROOT = Path(__file__).parent.parent
KEPT = Path(__file__).parent / "data" / "measured"


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures as a benchmark writes them, the command that makes them anew, and where and when they were made."""

    made_by: str
    date: str
    commit: str
    machine: str
    figures: Any

    @property
    def told(self) -> str:
        """Return where they come from, as a page says it below a table."""
        return f"*Measured on {self.date}, commit {self.commit}, {self.machine}; `{self.made_by}` measures it anew.*"


def file_of(name: str) -> Path:
    """Return where the figures of a name are kept."""
    return KEPT / f"{name}.json"


def read(name: str) -> Measured:
    """Read kept figures."""
    return Measured(**json.loads(file_of(name).read_text(encoding="utf-8")))


def write(name: str, made_by: str, figures: Any, load_before: float) -> None:
    """Keep what was measured just now, on this machine. `load_before`: of the machine, before the benchmark began."""
    machine = f"{os.cpu_count()} cores of {_processor()}, load {load_before:.1f} before it"
    commit = subprocess.run(
        ["git", "rev-parse", "--short=8", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    document = {"made_by": made_by, "date": today, "commit": commit, "machine": machine, "figures": figures}
    KEPT.mkdir(exist_ok=True)
    file_of(name).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    """Name what computes here, with the instructions that decide what it serves."""
    said = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if ":" in line
    )
    told = {key.strip(): value.strip() for key, value in said.items()}
    widest = next((name for name in ("avx512f", "avx2") if name in told.get("flags", "").split()), "")
    return " with ".join(filter(None, (told.get("model name", "an unnamed processor"), widest.upper().rstrip("F"))))
