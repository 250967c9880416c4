"""The environments of the outside tools, as `make backends` makes them, and a small model for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from passes.chain import find_backend
from tests.conftest import missing
from tests.walk.conftest import save_tiny_llama

_PLACE = Path(os.environ.get("TIGHTFIT_BACKENDS") or Path.home() / ".cache" / "tightfit" / "backends").expanduser()


def environment(name: str) -> Path:
    """The Python of one of the environments."""
    python = _PLACE / name / "bin" / "python"
    if not python.exists():
        missing(f"no outside tools at {python}", "`make backends` installs them")
    return python


@pytest.fixture
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tool that a test is parametrized with, its Python named as a user names it."""
    name: str = request.param
    python = environment("gptqmodel" if name == "gptqmodel" else "tools")
    monkeypatch.setenv(find_backend(name).variable, str(python))
    return name


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two blocks in BF16 with random weights."""
    return save_tiny_llama(tmp_path_factory.mktemp("small"), blocks=2, dtype=torch.bfloat16)
