"""What `verify` found, as the document that it leaves in the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from passes.files.atomic import read_json
from passes.record import dataclass
from planner.certificate import Comparison, SoakReport, kept
from planner.plan.codec import FORMAT_VERSION, from_json, to_json, upgraded
from targets.serve.load import LoadTiming

#: What `verify` writes into the result.
REPORT = "verified.json"


@dataclass(frozen=True)
class VerifyReport:
    """What the running engine showed, check by check; `holds` when every binding check does, of the soak too. `loads`: every load that was
    put on, the first of which the checks are about; `notes`: what was not done as asked.
    """

    checks: tuple[Comparison, ...]
    start_seconds: float
    sample: str
    loads: tuple[LoadTiming, ...] = ()
    engine_version: str | None = None
    notes: tuple[str, ...] = ()
    soak: SoakReport | None = None

    @property
    def holds(self) -> bool:
        """Whether every promise is kept."""
        return kept(self.checks) and (self.soak is None or self.soak.holds)

    def as_json(self) -> dict[str, Any]:
        """Return the report as a document."""
        return {
            "format_version": FORMAT_VERSION, "holds": self.holds, "checks": to_json(self.checks),
            "start_seconds": self.start_seconds, "sample": self.sample, "loads": to_json(self.loads),
            "engine_version": self.engine_version, "notes": list(self.notes), "soak": to_json(self.soak),
        }  # fmt: skip


def read_report(folder: Path) -> VerifyReport | None:
    """Return what `verify` left in a result; None where it was not verified. Raises InputError where the document is damaged."""
    path = folder / REPORT
    if not path.is_file():
        return None
    said = upgraded(read_json(path, "report of verify"), str(path))
    return from_json(VerifyReport, {k: v for k, v in said.items() if k not in ("format_version", "holds")}, str(path))
