"""Work as tasks of a Ray cluster of this machine: results are one process's to the byte, and a worker that is killed loses nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from passes.walk.state import WalkState
from tests.backends.conftest import environment
from tests.walk.conftest import save_tiny_llama

pytestmark = pytest.mark.slow

_BLOCKS = 12
_SPEC = """
model: model
target: { gpu: rtx-4090 }
engine: vllm
workload: { context: 128, concurrency: 1, input_tokens: 32, output_tokens: 16 }
passes:
  quantize: { formats: [FORMAT], dense: false }
  kv_cache: [fp8]
calibration: { dataset: text.txt, samples: 48, length: 128 }
evaluation: { dataset: python-reference, samples: 2, length: 64 }
"""


@pytest.fixture(scope="module")
def ray_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ray and what it needs of the environment that reads launch files, without what this one has: nothing of ours is another version."""
    [there] = environment("launch").parents[1].glob("lib/python3*/site-packages")
    own, folder = Path(sysconfig.get_paths()["purelib"]), tmp_path_factory.mktemp("ray")
    for package in there.iterdir():
        if not (own / package.name).exists() and package.suffix != ".pth":
            (folder / package.name).symlink_to(package)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a text, specs of two formats, one that cannot be met, and what one process makes of the first two."""
    folder = tmp_path_factory.mktemp("fleet")
    save_tiny_llama(folder / "model", _BLOCKS)
    (folder / "text.txt").write_text("every block that is finished stays finished, whatever ends the run. " * 400)
    for name, form in (("first", "w4a16-g32"), ("second", "w8a8")):
        (folder / f"{name}.yaml").write_text(_SPEC.replace("FORMAT", form))
    (folder / "broken.yaml").write_text(_SPEC.replace("FORMAT", "w5a16-g32"))
    done = started(folder, None, "first.yaml", "second.yaml", "-o", "local").communicate()
    assert (folder / "local" / "second-tightfit").is_dir(), done
    return folder


def started(folder: Path, ray: Path | None, *arguments: str) -> subprocess.Popen[str]:
    """`optimize apply` on the processor, with two workers where `ray` says where it is."""
    paths = [str(Path(__file__).parents[2]), *([str(ray)] if ray else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": ""}
    environment.pop("OMP_NUM_THREADS", None)
    on = ("--executor", "ray") if ray else ()
    command = [sys.executable, "-m", "planner.cli", "apply", *arguments, "--device", "cpu", *on, "--json"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def content(result: Path) -> Mapping[str, str]:
    """The checkpoint and its plan by name; what says where it was made, and how long that took, is another each time."""
    files = [*result.glob("*.safetensors"), result / "config.json", result / "plan.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def workers(parent: int) -> list[int]:
    """Processes below one that carry out a task of ours."""
    found, below = [], [parent]
    while below:
        pid = below.pop()
        try:
            below += [
                int(each)
                for task in Path(f"/proc/{pid}/task").iterdir()
                for each in (task / "children").read_text().split()
            ]
            name = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:  # it has ended
            continue
        if name.startswith("ray::_in_a_worker"):
            found.append(pid)
    return found


def finished_blocks(work: Path) -> int:
    return max((WalkState(folder).done for folder in work.glob("walk-*")), default=0)


def test_a_killed_worker_loses_nothing_and_the_result_is_one_process_s(place: Path, ray_packages: Path) -> None:
    child, work = started(place, ray_packages, "first.yaml", "-o", "made"), place / ".made.work"
    while finished_blocks(work) < 2:
        assert child.poll() is None, child.communicate()
        time.sleep(0.02)
    killed = workers(child.pid)
    assert killed, "no worker is at work"
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    before = finished_blocks(work)
    assert (work / "plan.json").is_file(), "the choices are saved before any weight is written, as one process does"
    out, err = child.communicate()
    assert child.returncode in (0, 4), err
    assert 2 <= before < _BLOCKS, "it was killed in the middle"
    assert content(place / "made") == content(place / "local" / "first-tightfit")
    steps = {step["name"]: step for step in json.loads(out)["steps"]}
    assert {"calibration text", "evaluation text", "walk", "assemble", "evaluate"} == steps.keys()
    assert not any(step["reused"] for step in steps.values()), "they were made for this run, if by others"


def test_a_fleet_is_made_side_by_side_and_one_that_fails_stops_no_other(place: Path, ray_packages: Path) -> None:
    child = started(place, ray_packages, "first.yaml", "broken.yaml", "second.yaml", "-o", "out")
    most = 0
    while child.poll() is None:
        most = max(most, len(workers(child.pid)))
        time.sleep(0.05)
    out, err = child.communicate()
    fleet = json.loads(out)
    assert child.returncode == fleet["exit_code"] == 2, err
    assert [Path(member["what"]).stem for member in fleet["members"]] == ["first", "broken", "second"]
    assert "w5a16" in fleet["members"][1]["said"] and most >= 2
    for name in ("first", "second"):
        assert content(place / "out" / f"{name}-tightfit") == content(place / "local" / f"{name}-tightfit")
