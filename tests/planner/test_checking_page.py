"""What docs/checking.md and the README give to Kubernetes and to GitHub runs; the commands of all pages: tests/test_docs_commands.py."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stand_in_nvml import MIB, Card, Library, install

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "checking.md").read_text(encoding="utf-8")


def on_a_4090(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    install(monkeypatch, Library([Card("NVIDIA GeForce RTX 4090", 24564 * MIB, 24100 * MIB)]))


def test_the_init_container_looks_at_its_machine(monkeypatch: pytest.MonkeyPatch, optimize: Any) -> None:
    on_a_4090(monkeypatch)
    container = yaml.safe_load(re.search(r"```yaml\n(initContainers:.+?)```", PAGE, re.DOTALL)[1])["initContainers"][0]  # type: ignore[index]
    command = container["args"][0].partition("&& optimize ")[2]
    assert optimize(*shlex.split(command))[0] == 0


def test_the_readmes_action_passes(optimize: Any) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    action = yaml.safe_load(re.search(r"```yaml\n# \.github/workflows/fits\.yml\n(.+?)```", text, re.DOTALL)[1])  # type: ignore[index]
    steps = action["jobs"]["fits"]["steps"]
    commands = [step["run"] for step in steps if step.get("run", "").startswith("optimize ")]
    assert len(commands) == 1
    assert optimize(*shlex.split(commands[0])[1:])[0] == 0
