"""The JSON documents by name: what writes each, and its class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from importlib import import_module
from typing import Any

from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A document: its title, what writes it, where its class is (`module:name`), and schemas of keys that stand beside its fields."""

    title: str
    written: str
    home: str
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Any:
        """Return its class."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(module), name)


DOCUMENTS: Mapping[str, Document] = {
    "plan": Document(
        "A plan", "`optimize plan --json`, `*.plan.json`, `plan.json` of a result", "planner.plan.document:PlanDocument"
    ),
    "check": Document("An answer of check", "`optimize check --json`", "planner.check:CheckDocument"),
    "certificate": Document(
        "A certificate", "`optimize apply --json`, `certificate.json` of a result",
        "planner.certificate:Certificate",
    ),
    "verified": Document(
        "What verify saw", "`optimize verify --json`, `verified.json` of a result", "planner.verifying.report:VerifyReport",
        {"format_version": {"type": "string"}, "holds": {"type": "boolean"}},
    ),
    "files": Document("Files of a result", "`optimize verify --offline --json`", "planner.verifying.result:FilesReport"),
    "answer": Document("An answer of explain", "`optimize explain --json`", "planner.explain.asked:Answer"),
    "difference": Document("A difference of plans", "`optimize diff --json`", "planner.explain.diff:PlanDifference"),
    "drift": Document("A plan under other versions", "`optimize drift --json`", "planner.explain.drift:DriftDocument"),
    "machine": Document("What a machine can do", "`optimize doctor --json`", "planner.setup.doctor:Machine"),
}  # fmt: skip
