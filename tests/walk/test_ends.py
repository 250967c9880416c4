"""However `optimize apply` is ended (kill -9, Ctrl-C, a full disk, no memory) it says so, and the next run ends with the same files."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from passes.run import assemble
from passes.run.result_folder import check_places, claim, publish
from passes.steps import step as steps
from passes.steps.progress import Progress
from planner.cli import progress
from tests.forked import Child, Ended, optimize, run
from tests.walk.conftest import save_tiny_llama

pytestmark = pytest.mark.slow

_BLOCKS = 16
_SPEC = """
model: model
target: { gpu: rtx-4090 }
engine: vllm
workload: { context: 128, concurrency: 1, input_tokens: 32, output_tokens: 16 }
passes:
  quantize: { formats: [w4a16-g32], dense: false }
  kv_cache: [fp8]
calibration: { dataset: text.txt, samples: 48, length: 128 }
evaluation: { dataset: python-reference, samples: 2, length: 64 }
"""
_MEASURED = """
model: model
target: { gpu: rtx-4090 }
engine: exllamav2
workload: { context: 128, concurrency: 1, input_tokens: 32, output_tokens: 16 }
passes:
  prune: { depth: 2 }
  quantize: { formats: [exl2-4.0], dense: false }
  kv_cache: [auto]
calibration: { dataset: text.txt, samples: 8, length: 64 }
evaluation: { dataset: python-reference, samples: 2, length: 64 }
"""


def acted(act: str, step: str, done: int, *arguments: str) -> None:
    """`optimize` with something done to it at a moment of its progress: at which step, after how many units."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest itself may run where it is ignored

    def reached() -> None:
        if act == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif act.startswith("kill after "):
            timer = threading.Timer(float(act.removeprefix("kill after ")), os.kill, (os.getpid(), signal.SIGKILL))
            timer.start()
        elif act.startswith("damage "):
            Path(sorted(Path(arguments[-1]).parent.glob(f".made.work/{act.removeprefix('damage ')}"))[-1]).write_bytes(
                b""
            )
            os.kill(os.getpid(), signal.SIGKILL)
        elif act.startswith("wait for "):
            while not Path(act.removeprefix("wait for ")).exists():
                time.sleep(0.05)
        elif act == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        elif act == "no room for files":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        elif act == "no memory":
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 4096, used + 4096))

    def report(event: Progress) -> None:
        if event.step == step and event.done >= done and event.total > 1 - (done == 0):
            if act.startswith("kill after ") and event.done > done:
                os.kill(os.getpid(), signal.SIGKILL)
            reached()

    progress.shown = lambda console: nullcontext(report)
    optimize(*arguments)


def noted_at_once(*arguments: Any) -> None:
    """The same, what an attempt took written down after each block, as it is once a second."""
    steps._NOTED_EVERY = 0.0
    acted(*arguments)


def killed_at_write(number: int, *arguments: str) -> None:
    """`optimize` killed before so many writes of `passes.run.assemble`; at 7, between its two renames."""
    left = number

    def dying(name: str) -> None:
        real = getattr(assemble, name)

        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(assemble, name, call)

    for name in ("claim", "_link", "write_shard", "copy_side_files", "write_json", "write_index"):
        dying(name)
    if number == 7:
        left = 10**9
        real = Path.rename

        def rename(path: Path, target: Path) -> Path:
            if str(path).endswith(".partial"):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(path, target)

        Path.rename = rename  # type: ignore[method-assign, assignment]
    optimize(*arguments)


@dataclass(frozen=True)
class Place:
    """A folder with a model, a plan, and the result of an apply that nothing ended."""

    folder: Path

    def apply(self, out: str, act: str = "nothing", step: str = "", done: int = 0) -> Ended:
        """`optimize apply` into a folder, something happening to it."""
        return run(acted, act, step, done, *self.arguments(out))

    def arguments(self, out: str) -> list[str]:
        return ["apply", str(self.folder / "tiny.plan.json"), "-o", str(self.folder / out / "made")]

    def content(self, out: str) -> Mapping[str, str]:
        """Every file of a result by its digest; without the certificate, which holds times, and the list, which holds its digest."""
        folder = self.folder / out / "made"
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in ("certificate.json", "manifest.json")
        }


def _place(folder: Path, spec: str, blocks: int) -> Place:
    save_tiny_llama(folder / "model", blocks=blocks)
    (folder / "text.txt").write_text("every block that is finished stays finished, whatever ends the run. " * 400)
    (folder / "tiny.yaml").write_text(spec)
    planned = run(optimize, "plan", folder / "tiny.yaml", "-o", folder / "tiny.plan.json")
    assert planned.returncode == 0, planned.stderr
    place = Place(folder)
    whole = place.apply("whole")
    assert whole.returncode in (0, 4), whole.stderr
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return _place(tmp_path_factory.mktemp("walked"), _SPEC, _BLOCKS)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return _place(tmp_path_factory.mktemp("measured"), _MEASURED, 8)


def finished_blocks(work: Path) -> int:
    """Blocks that a run in progress has recorded."""
    states = list(work.glob("walk-*/state.json"))
    return json.loads(states[0].read_text())["done"] if states else 0


def test_five_kills_end_with_the_files_of_an_uninterrupted_run(place: Place) -> None:
    chance = random.Random(5)
    work = place.folder / "killed" / ".made.work"
    finished = [0]
    for _ in range(5):
        wanted = finished[-1] + chance.randint(1, 2)
        ended = place.apply("killed", f"kill after {chance.uniform(0, 0.02)}", "walk", wanted)
        assert ended.returncode == -signal.SIGKILL
        finished.append(finished_blocks(work))
        assert not (place.folder / "killed" / "made").exists()
    assert finished == sorted(set(finished)) and finished[-1] < _BLOCKS, "each kill found the walk further on"

    final = place.apply("killed")
    assert final.returncode in (0, 4) and "Done" in final.stdout
    resumed = place.content("killed")
    assert any(name.startswith("launch/") for name in resumed)
    assert any(name.endswith(".safetensors") for name in resumed)
    assert resumed == place.content("whole")


@pytest.mark.parametrize(
    ("step", "done"),
    [
        ("measure depth", 3), ("measure EXL2", 2), ("measure formats", 3), ("measure formats", 11),
        ("compare allocations", 3), ("compare allocations", 21), ("assemble", 0), ("evaluate", 10),
    ],
)  # fmt: skip
def test_a_kill_in_any_step_goes_on_there(step: str, done: int, measured: Place) -> None:
    out = f"{step} {done}"
    assert measured.apply(out, "kill", step, done).returncode == -signal.SIGKILL
    assert not (measured.folder / out / "made").exists(), "nothing is published before it was measured"
    final = measured.apply(out)
    assert final.returncode in (0, 4), final.stderr
    assert measured.content(out) == measured.content("whole")


@pytest.mark.parametrize(
    ("step", "done", "damaged"),
    [
        ("measure depth", 6, "depth-*/influence/influence.json"), ("measure depth", 6, "depth-*/influence/hidden/*/*"),
        ("measure EXL2", 3, "exl2-*/layer-*.json"), ("measure EXL2", 3, "exl2-*/hidden/*/*"),
        ("measure formats", 4, "fisher-*/inputs/00001/*"), ("measure formats", 11, "fisher-*/costs-*.json"),
        ("compare allocations", 20, "contest-*/candidate-0.json"), ("evaluate", 3, "evaluate-*/source/*/*"),
    ],
)  # fmt: skip
def test_what_a_power_cut_leaves_is_made_again(step: str, done: int, damaged: str, measured: Place) -> None:
    out = f"{step} {damaged}".replace("/", " ").replace("*", "")
    assert measured.apply(out, f"damage {damaged}", step, done).returncode == -signal.SIGKILL
    final = measured.apply(out)
    assert final.returncode in (0, 4), final.stderr
    assert measured.content(out) == measured.content("whole")


def test_a_kill_while_the_result_is_put_together_goes_on_there(place: Place) -> None:
    """Before anything of it is there, in the middle of its tensors, before its marker, and between the two renames."""
    for number in range(8):
        ended = run(killed_at_write, number, *place.arguments("put together"))
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    final = place.apply("put together")
    assert final.returncode in (0, 4), final.stderr
    assert place.content("put together") == place.content("whole")
    assert sorted(path.name for path in (place.folder / "put together").iterdir()) == [
        ".made.lock",
        ".made.work",
        "made",
    ]


def test_two_applies_into_one_place_do_not_meet(place: Place, tmp_path: Path) -> None:
    go, works = tmp_path / "go", [tmp_path / "one", tmp_path / "two"]
    first, second = ([*place.arguments("shared"), "--work", str(work)] for work in works)
    waiting = Child(acted, f"wait for {go}", "walk", 1, *first)
    while not waiting.ended and not finished_blocks(works[0]):
        time.sleep(0.01)
    refused = run(optimize, *second)
    assert refused.returncode == 2 and "another apply is at work" in refused.stderr, refused.stderr
    go.touch()
    assert waiting.wait().returncode in (0, 4) and place.content("shared") == place.content("whole")


@pytest.mark.parametrize(
    ("act", "code", "said"),
    [
        ("interrupt", 130, "interrupted"),
        ("no room for files", 2, "cannot write"),
        ("no memory", 3, "out of memory"),
    ],
)
def test_every_end_is_one_clear_message_and_resumes(act: str, code: int, said: str, place: Place) -> None:
    ended = place.apply(act, act, "walk", 4)
    assert ended.returncode == code, ended.stderr
    lines = ended.stderr.strip().splitlines()
    assert said in lines[0] and "Traceback" not in ended.stderr and len(lines) == 2, ended.stderr
    assert finished_blocks(place.folder / act / ".made.work") >= 4
    final = place.apply(act)
    assert final.returncode in (0, 4), final.stderr
    assert place.content(act) == place.content("whole")


def test_the_certificate_counts_every_attempt(place: Place) -> None:
    def seconds(out: str) -> float:
        steps = json.loads((place.folder / out / "made" / "certificate.json").read_text())["steps"]
        return next(float(step["seconds"]) for step in steps if step["name"] == "walk")

    for done in (4, 8, 12):
        run(noted_at_once, "kill", "walk", done, *place.arguments("attempts"))
    assert place.apply("attempts").returncode in (0, 4)
    work = place.folder / "attempts" / ".made.work"
    blocks = json.loads(next(work.glob("walk-*/state.json")).read_text())["blocks"]
    assert seconds("attempts") > sum(block["seconds"] for block in blocks) * 0.9


@pytest.mark.parametrize(
    ("out", "work", "said"),
    [
        ("/", None, "no place for a result"),
        ("/proc/made", "{tmp}/work", "/proc/made"),
        ("/dev/null/made", "{tmp}/work", "/dev/null"),
        ("/dev", "{tmp}/work", "/dev"),
        ("{tmp}/made", "{tmp}/made/work", "overlaps the work folder"),
        ("{tmp}/made", "{tmp}/made.partial", "overlaps the work folder"),
        ("{tmp}/made", "{model}/work", "lies in the source"),
        ("{tmp}/taken", "{tmp}/work", "are not a result of tightfit"),
    ],
)
def test_a_place_that_cannot_hold_a_result_is_refused_at_once(
    out: str, work: str | None, said: str, place: Place, tmp_path: Path
) -> None:
    (tmp_path / ".taken.old").mkdir()
    (tmp_path / ".taken.old" / "mine.txt").write_text("not of tightfit")
    at = {"tmp": tmp_path, "model": place.folder / "model"}
    arguments = ["apply", place.folder / "tiny.plan.json", "-o", out.format(**at)]
    if work is not None:
        arguments += ["--work", work.format(**at)]
    before = sorted(path.name for path in (place.folder / "model").iterdir())
    refused = run(optimize, *arguments)
    assert refused.returncode == 2 and said in refused.stderr and "internal" not in refused.stderr, refused.stderr
    assert not list(tmp_path.glob("**/walk-*")) and (tmp_path / ".taken.old" / "mine.txt").exists()
    assert sorted(path.name for path in (place.folder / "model").iterdir()) == before


def test_an_older_result_that_is_half_removed_is_still_ours(tmp_path: Path) -> None:
    for folder in (tmp_path / "new", tmp_path / "made", tmp_path / ".made.old"):
        claim(folder)
        (folder / "launch").mkdir()
        (folder / "model.safetensors").write_text(folder.name)
    (tmp_path / ".made.old" / "model.safetensors").unlink()
    check_places(tmp_path / "made", tmp_path / "work", None)
    publish(tmp_path / "new", tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "model.safetensors").read_text() == "new"
