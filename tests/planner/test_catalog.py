"""Every model of the catalog can be asked about: a plan, or a refusal with its reasons, never a defect of ours."""

from __future__ import annotations

import json

import pytest

from passes.ir import catalog
from planner.plan.make import plan
from planner.spec.spec import Spec
from targets.engines.engine import ENGINE_NAMES

pytestmark = pytest.mark.slow


def distinct() -> list[str]:
    """The catalog's models without those whose description another one has already (instruct variants, copies)."""
    first: dict[str, str] = {}
    for model in sorted(catalog.ids()):
        first.setdefault(json.dumps(catalog.entry(model).config, sort_keys=True), model)
    return list(first.values())


@pytest.mark.parametrize("model", distinct())
def test_the_shortest_spec_there_is_gives_a_plan_or_says_why_not(model: str) -> None:
    for count in (1, 8):
        for engine in ("auto", *ENGINE_NAMES):
            target = {"gpu": "L4", "count": count}
            document = plan(Spec.model_validate({"model": model, "target": target, "engine": engine})).document
            if document.chosen is None:
                assert document.rejected, f"{engine} on {count}: nothing chosen and no reason"
                assert all(verdict.reasons for verdict in document.rejected)
            else:
                assert document.chosen.label
