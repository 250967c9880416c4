"""tightfit compiles a language model onto a card. This facade holds every public name; the rooms behind it may change.

import tightfit
made = tightfit.plan({"model": "Qwen/Qwen2.5-7B-Instruct", "target": {"gpu": "rtx-4090"}})
result = tightfit.apply(made)
tightfit.verify(result.out)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from passes.errors import (
        DoesNotFitError,
        GoalMissedError,
        InputError,
        NotModelledError,
        StalePlanError,
        TightfitError,
    )
    from planner.apply import ApplyResult, apply
    from planner.certificate import Certificate
    from planner.check import CheckDocument, CheckResult, check
    from planner.machine import Computing
    from planner.plan.document import PlanDocument
    from planner.plan.make import Plan, plan
    from planner.plan.parts.chosen import ChosenPlan
    from planner.plan.saved import load_plan
    from planner.spec.parse import load_spec
    from planner.spec.parts.choices import PassesChoice
    from planner.spec.parts.goals import Goals
    from planner.spec.parts.target import Target
    from planner.spec.parts.workload import WorkloadSpec
    from planner.spec.spec import Spec
    from planner.verifying.report import VerifyReport
    from planner.verifying.verify import UnderLoad, verify
    from planner.version import VERSION as __version__  # noqa: N811 (Python's own name)
    from targets.engines.engine import Parallel, Settings
    from targets.quantity import Basis, Quantity

__all__ = [
    "ApplyResult",
    "Basis",
    "Certificate",
    "CheckDocument",
    "CheckResult",
    "ChosenPlan",
    "Computing",
    "DoesNotFitError",
    "GoalMissedError",
    "Goals",
    "InputError",
    "NotModelledError",
    "Parallel",
    "PassesChoice",
    "Plan",
    "PlanDocument",
    "Quantity",
    "Settings",
    "Spec",
    "StalePlanError",
    "Target",
    "TightfitError",
    "UnderLoad",
    "VerifyReport",
    "WorkloadSpec",
    "__version__",
    "apply",
    "check",
    "load_plan",
    "load_spec",
    "plan",
    "verify",
]

#: Where each name is, and what it is called there.
_HOME = {
    **dict.fromkeys(
        ("TightfitError", "InputError", "DoesNotFitError", "GoalMissedError", "NotModelledError", "StalePlanError"), "passes.errors"
    ),
    **dict.fromkeys(("ApplyResult", "apply"), "planner.apply"), "Certificate": "planner.certificate",
    **dict.fromkeys(("CheckDocument", "CheckResult", "check"), "planner.check"),
    **dict.fromkeys(("Plan", "plan"), "planner.plan.make"), **dict.fromkeys(("ChosenPlan", "PlanDocument"), "planner.plan.document"),
    "load_plan": "planner.plan.saved", "load_spec": "planner.spec.parse",
    "Spec": "planner.spec.spec", "Target": "planner.spec.parts.target", "WorkloadSpec": "planner.spec.parts.workload",
    "Goals": "planner.spec.parts.goals", "PassesChoice": "planner.spec.parts.choices",
    "Computing": "planner.machine", "VerifyReport": "planner.verifying.report",
    **dict.fromkeys(("UnderLoad", "verify"), "planner.verifying.verify"),
    "__version__": "planner.version",
    **dict.fromkeys(("Settings", "Parallel"), "targets.engines.engine"), **dict.fromkeys(("Quantity", "Basis"), "targets.quantity"),
}  # fmt: skip
_THERE = {"__version__": "VERSION"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import tightfit` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'tightfit' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), _THERE.get(name, name))


def __dir__() -> list[str]:
    """Return the public names, those that are not loaded yet among them."""
    return sorted(__all__)
