"""Launch targets: written from an engine's launch, found by name, added by other packages."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

import pytest

from passes.errors import InputError
from planner.plan.launch import launch, target_files
from planner.plan.make import plan
from planner.spec.parse import parse_spec
from targets.launch.request import Launch
from targets.launch.target import LAUNCH_TARGETS, find_launch_target

_SPEC = "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: rtx-4090 }\nengine: vllm\n"
_TARGET = """
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget


class Toy(LaunchTarget):
    name = "toy"

    def files(self, launch, result):
        return (LaunchFile("toy.txt", " ".join(launch.command)),)
"""


@pytest.fixture
def started() -> Launch:
    """What starts vLLM on a result."""
    made = plan(parse_spec(_SPEC))
    assert made.result.chosen is not None
    return launch(made.document, made.result.chosen.ir, "small")


def test_a_unit_runs_the_results_own_script(started: Launch) -> None:
    [unit] = find_launch_target("systemd").files(started, Path("/srv/my models/50 %/small"))
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.text)
    assert unit.path == "small.service" and "@" not in unit.text
    assert parser["Service"]["ExecStart"] == "/srv/my\\x20models/50\\x20%%/small/launch/run.sh"
    assert f"PORT={started.port}" in parser["Service"]["Environment"]


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="launch target 'sytemd'") as caught:
        find_launch_target("sytemd")
    assert "systemd" in f"{caught.value.message} {caught.value.remedy}"


def test_a_folder_that_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished result"):
        target_files(tmp_path, "systemd")


@pytest.mark.parametrize(("name", "group"), [("toy", True), ("systemd", False)])
def test_another_package_adds_one_and_replaces_none(
    name: str, group: bool, started: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy_target.py").write_text(_TARGET)
    info = tmp_path / "toy_target-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-target\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{LAUNCH_TARGETS.group}]\n{name} = toy_target:Toy\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_target", raising=False)
    if group:
        [file] = find_launch_target(name).files(started, tmp_path)
        assert file.text.startswith("vllm serve")
    else:
        with pytest.raises(InputError, match="is there twice: in tightfit and in toy-target"):
            find_launch_target("another")
