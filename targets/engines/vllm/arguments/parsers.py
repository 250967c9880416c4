"""The parsers of tool calls and of reasoning that a server is told by name (`--tool-call-parser hermes`): it stops at one that it has not.

`parsers.jsonl`, made by `benchmarks/read_vllm_parsers.py` from the sources of the versions that it names. Of a plugin's nothing is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.errors import Reason, unknown_name
from passes.record import dataclass
from targets.engines.vllm.rules.versions import parse_version

#: The flag that brings parsers of one's own, by the flag that names one.
_PLUGINS = {"tool-call-parser": "tool-parser-plugin", "reasoning-parser": "reasoning-parser-plugin"}


@dataclass(frozen=True, slots=True)
class Parser:
    """`since`, `until`: the first and the last of the versions read that have it; `lacking`, `gone`: those before and after, that have it
    not. None where it is there at that end.
    """

    lacking: str | None = None
    since: str | None = None
    until: str | None = None
    gone: str | None = None

    def absent(self, version: str) -> str | None:
        """Return why a version has it not; None where it does, or where it lies between two that were read."""
        read = parse_version(version)
        if self.lacking is not None and read <= parse_version(self.lacking):
            return f"it came after {self.lacking}, and {self.since} has it"
        if self.gone is not None and read >= parse_version(self.gone):
            return f"it went after {self.until}"
        return None


@lru_cache(maxsize=1)
def _parsers() -> dict[str, dict[str, Parser]]:
    """Parsers by flag and name."""
    text = Path(__file__).with_name("parsers.jsonl").read_text(encoding="utf-8")
    found: dict[str, dict[str, Parser]] = {}
    for row in map(json.loads, text.splitlines()):
        told = Parser(row.get("lacking"), row.get("since"), row.get("until"), row.get("gone"))
        found.setdefault(row["flag"], {})[row["name"]] = told
    return found


def _named(flags: Mapping[str, Any]) -> Iterator[tuple[str, str, Parser]]:
    """The parsers that flags name. Raises InputError for one that no version has."""
    for flag, plugin in _PLUGINS.items():
        name = flags.get(flag)
        if not isinstance(name, str) or plugin in flags:
            continue
        known = _parsers()[flag]
        if name not in known:
            raise unknown_name(
                f"value of --{flag}", name, known, remedy=f"name one of vLLM's, or its file with --{plugin}"
            )
        yield flag, name, known[name]


def absent_parsers(flags: Mapping[str, Any], version: str | None) -> Iterator[Reason]:
    """Give the parsers that a version has not: its server stops at its command line. Raises InputError for one that no version has."""
    for flag, name, parser in _named(flags):
        if version is not None and (why := parser.absent(version)) is not None:
            message = f"vLLM {version} has no --{flag} {name} ({why}): it stops at its command line"
            yield Reason("flag_not_in_version", message, f"leave --{flag} out, or take another version")


def parser_notes(flags: Mapping[str, Any], version: str | None) -> Iterator[str]:
    """Give the parsers that went, where no version is named."""
    for flag, name, parser in _named(flags):
        if version is None and parser.until is not None:
            yield f"--{flag} {name} went after vLLM {parser.until}: newer ones stop at it; name the version with --engine-version"
