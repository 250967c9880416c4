"""Plans and launch files of whole scenarios, from a laptop of 8 GB to sixteen H200, held against golden folders.

Each folder has `spec.yaml`, which begins with why an expert would agree, `plan.yaml`, what was chosen, and the launch files that the spec
lists. `python -m tests.golden.test_scenarios` writes the last two anew.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from passes.chain import rewrite
from planner.plan.document import PlanDocument, spec_of
from planner.plan.launch import of_plan, target_files
from planner.plan.make import plan
from planner.plan.opened import Opened, source_of
from targets.launch.deployment import Deployment

HERE = Path(__file__).parent
SCENARIOS = tuple(sorted(path.parent.name for path in HERE.glob("*/spec.yaml")))
#: Their specs as they stand: what tests are named after must not need a plan.
SPECS: dict[str, dict[str, Any]] = {
    name: yaml.safe_load((HERE / name / "spec.yaml").read_text(encoding="utf-8")) for name in SCENARIOS
}
#: Where checkpoints lie that are made, as the files name them: not a place of this machine.
_PLACE = Path("/srv/models")
#: The processor of plans that are for one.
_PROCESSOR = {
    "cpu_instructions": frozenset({"avx2", "avx512f", "avx512_bf16"}), "cpu_model": "A processor", "cores": 16,
    "memory_total_bytes": 64 << 30,
}  # fmt: skip


#: Scenarios that name two machines: one is enough, and not.
_OF_SIXTEEN = ("20-h200x16-deepseek-r1", "21-h100x16-405b-bf16")


@contextmanager
def some_processor() -> Iterator[None]:
    """The same processor on every machine."""
    with ExitStack() as stack:
        for name, value in _PROCESSOR.items():
            stack.enter_context(patch(f"targets.gpu.{name}", return_value=value))
        yield


@cache
def planned(name: str) -> PlanDocument:
    """The plan of a scenario."""
    with some_processor():
        return plan(HERE / name / "spec.yaml").document


@cache
def server(name: str) -> Deployment:
    """The server of a scenario, without what changes with every figure (the plan's digest) or machine (its folder)."""
    with some_processor():
        document = planned(name)
        spec = spec_of(document)
        saved = Opened(document, spec, rewrite(source_of(document, spec), document.decision.chain))
        made = of_plan(saved, Path(f"{name}.plan.json"))
    served = made.served
    if served.folder is not None:
        served = replace(served, folder=_PLACE / served.folder.name)
    return replace(made, served=served, plan="")


def summary(name: str) -> dict[str, Any]:
    """What was chosen, in figures that people read."""
    chosen = planned(name).decision
    memory, kv, settings = chosen.memory, chosen.kv_cache, chosen.settings
    return {
        "engine": f"{chosen.engine.name} {chosen.engine.version}",
        "weights": chosen.weights if chosen.published is None else f"{chosen.weights} of {chosen.published}",
        "kv_cache": chosen.kv_cache_dtype,
        "cards": f"TP {settings.tensor_parallel}, PP {settings.pipeline_parallel}, DP {settings.data_parallel or 1}",
        "weights_gib": round(memory.weights.value / 2**30, 1),
        "budget_gib": round(memory.budget.value / 2**30, 1),
        "kv_tokens": round(kv.tokens.value, -3),
        "why": chosen.why,
    }


def files(name: str) -> dict[str, str]:
    """The golden files of a scenario by their paths."""
    out = {"plan.yaml": yaml.safe_dump(summary(name), sort_keys=False, width=120, allow_unicode=True)}
    targets = planned(name).spec.launch
    return out | {f"launch/{file.path}": file.text for file in target_files(server(name), targets)}


@pytest.mark.parametrize("name", SCENARIOS)
def test_plan_and_launch_files_are_the_golden_ones(name: str) -> None:
    written = files(name)
    there = {str(path.relative_to(HERE / name)) for path in (HERE / name).rglob("*") if path.is_file()}
    assert there - {"spec.yaml"} == set(written)
    for path, text in written.items():
        assert text == (HERE / name / path).read_text(encoding="utf-8"), f"{name}/{path} changed"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_says_in_three_lines_why_an_expert_would_agree(name: str) -> None:
    text = (HERE / name / "spec.yaml").read_text(encoding="utf-8")
    assert len(re.findall(r"^# .{40,}\.$", text, re.MULTILINE)) == 3


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_plan_that_makes_nothing_names_its_source_and_no_place_of_ours(name: str) -> None:
    chosen = planned(name).decision
    if chosen.nothing_to_make:
        assert server(name).served.folder is None and server(name).model == planned(name).model
        assert not any(
            str(_PLACE) in text or "/models" in text.replace("/v1/models", "") for text in files(name).values()
        )


def test_cards_that_a_plan_leaves_idle_are_said() -> None:
    said = "8 of 16 cards are used, in one of 2 machines"
    assert [any(note.startswith(said) for note in planned(name).decision.notes) for name in _OF_SIXTEEN] == [
        True,
        False,
    ]


def test_there_are_twenty_and_every_target_is_among_them() -> None:
    listed = {target for spec in SPECS.values() for target in spec["launch"]}
    assert len(SCENARIOS) >= 20
    assert listed == {
        "compose", "systemd", "quadlet", "script", "skypilot", "kubernetes", "production-stack", "kserve", "llm-d", "dynamo",
        "ray-serve", "kuberay",
    }  # fmt: skip


def _write() -> None:
    for name in SCENARIOS:
        shutil.rmtree(HERE / name / "launch", ignore_errors=True)
        for path, text in files(name).items():
            place = HERE / name / path
            place.parent.mkdir(exist_ok=True)
            place.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _write()
