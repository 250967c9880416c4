"""An engine of another package is planned for, checked and launched where it is named, and weighed nowhere else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from passes.errors import InputError
from planner.check import check
from planner.plan.make import plan
from planner.spec.parse import parse_spec
from targets.engines.engine import ENGINE_NAMES, ENGINES, find_engine

_CODE = """
from targets.engines.engine import find_engine
from targets.engines.exllama.v2 import ExllamaV2

class Toy(ExllamaV2):
    name = "toy-engine"
    fitted = (("toy_package", "constants.json"),)

    def speed(self, ir, gpu, settings, workload, memory):
        return find_engine("exllamav2").speed(ir, gpu, settings, workload, memory)

    def served(self, ir, gpu, settings, workload, memory):
        return find_engine("exllamav2").served(ir, gpu, settings, workload, memory)
"""
_SPEC = """
model: Qwen/Qwen2.5-7B-Instruct
target: {{ gpu: rtx-4090 }}
engine: {engine}
workload: {{ context: 8192, concurrency: 2 }}
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    info, package = tmp_path / "toy-1.0.dist-info", tmp_path / "toy_package"
    info.mkdir()
    package.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tightfit.engines]\ntoy-engine = toy_package:Toy\n")
    (package / "__init__.py").write_text(_CODE)
    (package / "constants.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    find_engine.cache_clear()
    sys.modules.pop("toy_package", None)


@pytest.mark.usefixtures("installed")
def test_it_is_planned_for_where_it_is_named() -> None:
    ours, its = (plan(parse_spec(_SPEC.format(engine=name))) for name in ("exllamav2", "toy-engine"))
    chosen, engine = its.document.decision, ours.document.decision.engine
    assert chosen.engine.name == "toy-engine"
    assert replace(chosen, engine=engine, label="") == replace(ours.document.decision, label="")
    assert "constants.json" in its.document.lock.data and "constants.json" not in ours.document.lock.data
    assert check("Qwen2.5-7B-Instruct", "RTX 4090", "toy-engine", context=4096).engine == "toy-engine"
    assert "toy-engine" in ENGINES.names(installed=True)


@pytest.mark.usefixtures("installed")
def test_auto_weighs_our_own_engines_only() -> None:
    result = plan(parse_spec(_SPEC.format(engine="auto"))).result
    assert {verdict.candidate.engine for verdict in result.rejected} <= set(ENGINE_NAMES)


def test_an_unknown_engine_is_told_the_nearest() -> None:
    with pytest.raises(InputError, match="vlm") as error:
        find_engine("vlm")
    assert "vllm" in str(error.value) and error.value.exit_code == 2


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys, planner.plan.make, planner.plan.launch\n"
        "from targets.engines.engine import ENGINE_NAMES, find_engine\n"
        "[find_engine(name) for name in ENGINE_NAMES]\n"
        "print({'torch', 'transformers', 'scipy.optimize', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
