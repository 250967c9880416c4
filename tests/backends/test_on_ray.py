"""Work as tasks of a Ray cluster of this machine: results are one process's to the byte, and a worker that is killed loses nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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

#: How often nodes are asked whether they are there, and how soon after a broken connection: a process that is gone refuses at once, so that
#: a node that was ended is known to be within seconds. How long one that is there may take to answer is left as Ray has it.
_SOON = {
    "RAY_health_check_initial_delay_ms": "500", "RAY_health_check_period_ms": "500",
    "RAY_raylet_rpc_server_reconnect_timeout_base_s": "1", "RAY_core_worker_rpc_server_reconnect_timeout_base_s": "1",
}  # fmt: skip


@pytest.fixture(scope="module")
def ray_packages() -> Iterator[Path]:
    """Ray and what it needs of the environment that reads launch files, without what this one has: nothing of ours is another version. In
    a folder whose name is short enough for Ray's sockets, which are there too (`around`).
    """
    [there] = environment("launch").parents[1].glob("lib/python3*/site-packages")
    own, folder = Path(sysconfig.get_paths()["purelib"]), Path(tempfile.mkdtemp(prefix="ray"))
    for package in there.iterdir():
        if not (own / package.name).exists() and package.suffix != ".pth":
            (folder / package.name).symlink_to(package)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


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


def around(ray: Path | None, address: str = "") -> dict[str, str]:
    """The environment of a process of ours, with Ray where `ray` says that it is."""
    paths = [str(Path(__file__).parents[2]), *([str(ray)] if ray else [])]
    told = {
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": address,
    } | ({"RAY_TMPDIR": str(ray / "t"), **_SOON} if ray else {})
    return {name: value for name, value in (os.environ | told).items() if name != "OMP_NUM_THREADS"}


def started(folder: Path, ray: Path | None, *arguments: str, address: str = "") -> subprocess.Popen[str]:
    """`optimize apply` on the processor, with two workers where `ray` says where it is, else on the cluster at an address."""
    on = ("--executor", "ray") if ray else ()
    command = [sys.executable, "-m", "planner.cli", "apply", *arguments, "--device", "cpu", *on, "--json"]
    return subprocess.Popen(
        command, cwd=folder, env=around(ray, address), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@contextmanager
def cluster(folder: Path, ray: Path) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """A cluster of two nodes with a processor each, which know of each other by their address alone: it, and what runs each node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, nodes = f"127.0.0.1:{port}", list[subprocess.Popen[str]]()
    try:
        for which in (("--head", f"--port={port}", "--include-dashboard=false"), (f"--address={address}",)):
            log = folder / f"node{len(nodes)}.log"
            command = [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "start",
                *which,
                "--num-cpus=1",
                "--num-gpus=0",
                "--block",
            ]
            with log.open("w") as said:
                nodes.append(
                    subprocess.Popen(command, cwd=folder, env=around(ray), text=True, stdout=said, stderr=said)
                )
            while "--block" not in log.read_text():  # "This command will now block", once the node is up
                assert nodes[-1].poll() is None, log.read_text()
                time.sleep(0.2)
        yield address, nodes
    finally:
        for node in nodes:
            end(node)


def end(node: subprocess.Popen[str]) -> None:
    """End a node at once, with everything that runs on it, as a machine that loses its power does."""
    for pid in below(node.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.wait()


def content(result: Path) -> Mapping[str, str]:
    """The checkpoint and its plan by name; what says where it was made, and how long that took, is another each time."""
    files = [*result.glob("*.safetensors"), result / "config.json", result / "plan.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def below(parent: int) -> list[int]:
    """A process and those below it."""
    found, waiting = [], [parent]
    while waiting:
        found.append(pid := waiting.pop())
        with suppress(OSError):  # it has ended
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return found


def workers(parent: int) -> list[int]:
    """Processes below one that carry out a task of ours."""
    names = {}
    for pid in below(parent):
        with suppress(OSError):
            names[pid] = Path(f"/proc/{pid}/cmdline").read_text()
    return [pid for pid, name in names.items() if name.startswith("ray::_in_a_worker")]


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


def test_a_node_that_is_lost_in_the_middle_loses_nothing(place: Path, ray_packages: Path) -> None:
    with cluster(place, ray_packages) as (address, nodes):
        child, work = (
            started(place, ray_packages, "first.yaml", "-o", "spread", address=address),
            place / ".spread.work",
        )
        busy = list[subprocess.Popen[str]]()
        while finished_blocks(work) < 2 or len(busy) != 1:  # the walk, once the texts are ready
            assert child.poll() is None, child.communicate()
            busy = [node for node in nodes if workers(node.pid)]
        if busy[0] is nodes[0]:  # the head keeps the cluster together: of it the worker alone
            for pid in workers(nodes[0].pid):
                os.kill(pid, signal.SIGKILL)
        else:
            end(nodes[1])
        _, err = child.communicate()
    assert child.returncode in (0, 4), err
    assert content(place / "spread") == content(place / "local" / "first-tightfit")


def test_the_address_of_a_cluster_that_is_gone_is_let_be(place: Path, ray_packages: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"127.0.0.1:{free.getsockname()[1]}"
    kept = ray_packages / "t" / "ray" / "ray_current_cluster"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(gone)
    _, err = started(place, ray_packages, "broken.yaml", "first.yaml", "-o", "alone").communicate()
    assert content(place / "alone" / "first-tightfit") == content(place / "local" / "first-tightfit"), err
    out, err = started(place, ray_packages, "first.yaml", "-o", "named", address=gone).communicate()
    assert f"no Ray cluster can be used at {gone}" in out + err
