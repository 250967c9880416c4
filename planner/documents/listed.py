"""The JSON documents by name: what writes each, and its class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from importlib import import_module
from typing import Any

from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A document: its title, what writes it, where its class is (`module:name`), and what may stand beside its fields: by key a plain type,
    or where a class is, which may be null.
    """

    title: str
    written: str
    home: str
    beside: Mapping[str, type | str] = field(default_factory=dict)

    @property
    def kind(self) -> Any:
        """Return its class."""
        return _class(self.home)

    @property
    def others(self) -> Mapping[str, Any]:
        """Return the types of what may stand beside its fields."""
        return {key: _class(kind) | None if isinstance(kind, str) else kind for key, kind in self.beside.items()}


def _class(home: str) -> Any:
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)


DOCUMENTS: Mapping[str, Document] = {
    "plan": Document(
        "A plan", "`optimize plan --json`, `*.plan.json`, `plan.json` of a result", "planner.plan.document:PlanDocument"
    ),
    "check": Document(
        "An answer of check", "`optimize check --json`", "planner.check:CheckDocument",
        {"machine": "targets.machine.live:LiveMachine"},
    ),
    "certificate": Document(
        "A certificate", "`optimize apply --json`, `certificate.json` of a result",
        "planner.certificate:Certificate",
    ),
    "verified": Document(
        "What verify saw", "`optimize verify --json`, `verified.json` of a result", "planner.verifying.report:VerifyReport",
        {"format_version": str, "holds": bool},
    ),
    "shown": Document(
        "A result as `show` tells it", "`optimize show RESULT --json`", "planner.certificate:Certificate",
        {"origin": "planner.verifying.result:Origin", "files": "planner.verifying.result:FilesReport"},
    ),
    "fleet": Document(
        "What became of many specs", "`optimize apply SPEC SPEC … --json`", "planner.fleet:Fleet", {"exit_code": int}
    ),
    "files": Document("Files of a result", "`optimize verify --offline --json`", "planner.verifying.result:FilesReport"),
    "answer": Document("An answer of explain", "`optimize explain --json`", "planner.explain.asked:Answer"),
    "difference": Document("A difference of plans", "`optimize diff --json`", "planner.explain.diff:PlanDifference"),
    "drift": Document("A plan under other versions", "`optimize drift --json`", "planner.explain.drift:DriftDocument"),
    "launch": Document("Launch files", "`optimize launch --json`", "planner.documents.launched:LaunchDocument"),
    "error": Document(
        "An error that can be mended", "every command with `--json`, where it fails", "planner.documents.failure:FailureDocument"
    ),
    "machine": Document("What a machine can do", "`optimize doctor --json`", "planner.setup.doctor:Machine"),
}  # fmt: skip
