"""What is installed: the wheel holds every file that the packages read, and plans beside nothing but what it requires."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

_ROOMS = ("passes", "planner", "targets", "tightfit")
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: Run first by the Python that tries the wheel: what only extras bring is not there.
_BARE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[]", each)[0].replace("-", "_") for each in requirements}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of a copy and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for room in _ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=source, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_holds_every_file_of_the_packages(installed: Path) -> None:
    def files(root: Path) -> set[str]:
        found = (path.relative_to(root) for room in _ROOMS for path in (root / room).rglob("*") if path.is_file())
        return {str(path) for path in found if "__pycache__" not in path.parts}

    assert files(installed) == files(ROOT)


def test_the_wheel_plans_beside_what_it_requires_alone(installed: Path, tmp_path: Path) -> None:
    required = _names(_PROJECT["dependencies"])
    extra = {name for wanted in _PROJECT["optional-dependencies"].values() for name in _names(wanted)} - required
    (tmp_path / "sitecustomize.py").write_text(_BARE.format(names=sorted(extra)))
    shutil.copy(ROOT / "examples/qwen2.5-32b-rtx4090.yaml", tmp_path / "tightfit.yaml")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{installed}", "HF_HUB_OFFLINE": "1"}

    def optimize(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "planner.cli", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    planned = optimize("plan", "-o", "a.plan.json")
    assert planned.returncode == 0, planned.stderr
    assert optimize("report", "a.plan.json", "-o", "a.html").returncode == 0
    asked = [sys.executable, "-c", "import planner; print(planner.__file__)"]
    where = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert where.stdout.startswith(str(installed))
    refused = optimize("apply", "a.plan.json")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
