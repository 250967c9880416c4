"""tightfit compiles a language model onto a card. This facade holds every public name; the rooms behind it may change.

import tightfit
made = tightfit.plan("spec.yaml")
result = tightfit.apply(made.document)
tightfit.verify(result.out)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.apply import ApplyResult, apply
    from planner.certificate import Certificate
    from planner.check import CheckDocument, CheckResult, check
    from planner.plan.document import PlanDocument
    from planner.plan.make import Plan, plan
    from planner.plan.saved import load_plan
    from planner.spec.parse import load_spec
    from planner.spec.spec import Spec
    from planner.verifying.report import VerifyReport
    from planner.verifying.verify import verify

__all__ = [
    "ApplyResult",
    "Certificate",
    "CheckDocument",
    "CheckResult",
    "Plan",
    "PlanDocument",
    "Spec",
    "VerifyReport",
    "apply",
    "check",
    "load_plan",
    "load_spec",
    "plan",
    "verify",
]

_HOME = {
    "ApplyResult": "apply", "apply": "apply", "Certificate": "certificate",
    "CheckDocument": "check", "CheckResult": "check", "check": "check",
    "Plan": "plan.make", "plan": "plan.make", "PlanDocument": "plan.document", "load_plan": "plan.saved",
    "Spec": "spec.spec", "load_spec": "spec.parse", "VerifyReport": "verifying.report", "verify": "verifying.verify",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import tightfit` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'tightfit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"planner.{_HOME[name]}"), name)
