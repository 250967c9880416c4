"""What a command writes with `--json` in place of its document where it fails."""

from __future__ import annotations

from dataclasses import field

from passes.errors import Location
from passes.record import dataclass
from planner.plan.codec import FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Failure:
    """What is wrong, where it stands in a file of the user's, and what to do."""

    message: str
    remedy: str | None = None
    location: Location | None = None


@dataclass(frozen=True, slots=True)
class FailureDocument:
    """The document of an error that a user can mend; mistakes in the command line too."""

    error: Failure
    format_version: str = field(default=FORMAT_VERSION, kw_only=True)
