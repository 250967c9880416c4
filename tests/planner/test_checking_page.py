"""What launch files and the README give to Kubernetes and to GitHub runs; the commands of all pages: tests/test_docs_commands.py."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stand_in_nvml import MIB, Card, Library, install

ROOT = Path(__file__).resolve().parents[2]


def test_what_an_init_container_asks_is_answered_on_its_card(monkeypatch: pytest.MonkeyPatch, optimize: Any) -> None:
    install(monkeypatch, Library([Card("NVIDIA L4", 23034 * MIB, 22600 * MIB)]))
    text = (ROOT / "tests/golden/04-l4-50-users-8b/launch/kubernetes.yaml").read_text(encoding="utf-8")
    [asked] = re.findall(r"\|\| optimize (check --live .+?) >&2", text)
    assert optimize(*shlex.split(asked))[0] == 0


def test_the_readmes_action_passes(optimize: Any) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    action = yaml.safe_load(re.search(r"```yaml\n# \.github/workflows/fits\.yml\n(.+?)```", text, re.DOTALL)[1])  # type: ignore[index]
    steps = action["jobs"]["fits"]["steps"]
    commands = [step["run"] for step in steps if step.get("run", "").startswith("optimize ")]
    assert len(commands) == 1
    assert optimize(*shlex.split(commands[0])[1:])[0] == 0
