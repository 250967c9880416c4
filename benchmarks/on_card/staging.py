"""Stages, each in a process of its own under a limit of time: a crash or a hang of one takes no other with it.

<work>/stages/<stage>.json    what became of it, written whole when it ends; a finished stage is not run again
<work>/stages/<stage>.notes   what it has noted so far: of a stage that was ended these figures are kept
<work>/logs/<stage>.log       what it printed
<out>/on_card.json            all stages together, written anew after each
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from passes.files.atomic import write_json

#: The most seconds that a stage may take, what ends it included.
LIMIT_S = 118.0
#: What a stage has to end what it started, once it is asked to.
_GRACE_S = 8.0
#: Set to the work folder in every process of a stage, so that none outlives it, whatever session it moved to.
_MARK = "TIGHTFIT_ON_CARD_STAGE"
COMBINED = "on_card.json"
_TAIL_LINES = 45
_CAUSE = re.compile(r"\b\w+(?:Error|Exception|Exit)\b.*:")


class NotHereError(Exception):
    """Something that a stage needs is not there; the message names it."""


@dataclass(frozen=True)
class Setup:
    """What every stage is told: where to work (a folder that stays), how large the models are (`8b` or `tiny`), where tools are."""

    work: Path
    shape: str = "8b"
    tools: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The setup as JSON values."""
        return {**asdict(self), "work": str(self.work)}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Setup:
        """Read back what `as_json` gave."""
        return cls(Path(values["work"]), values["shape"], values["tools"])


@dataclass(frozen=True)
class Stage:
    """A stage: `function` (`module:name`) is called with the setup, a `Notes`, and `options`; `limit_s`: its seconds at most."""

    name: str
    function: str
    options: Mapping[str, Any] = field(default_factory=dict)
    limit_s: float = LIMIT_S


class Notes:
    """The figures of a stage: each call adds some, and what was noted is on disk when it returns. `headline` is what the table shows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Any] = {}

    def __call__(self, **figures: Any) -> None:
        self.found |= figures
        write_json(self._path, self.found)


def run_all(
    stages: Sequence[Stage],
    setup: Setup,
    out: Path,
    *,
    again: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Run the stages in their order, but for those that are finished (`again`: those too); return what `<out>/on_card.json` holds."""
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        before = _record(setup, stage.name)
        if not again and before is not None and before["status"] == "ok" and before["shape"] == setup.shape:
            say(line(before) + "  (from before)")
        else:
            say(line(run_stage(stage, setup)))
        write_json(out / COMBINED, combined(setup))
    return combined(setup)


def combined(setup: Setup) -> dict[str, Any]:
    """All that is known of the stages in a work folder, in the order in which they ran."""
    records = [json.loads(path.read_text()) for path in (setup.work / "stages").glob("*.json")]
    records.sort(key=lambda record: str(record["began"]))
    return {"format_version": "1", "stages": {record["stage"]: record for record in records}}


def line(record: Mapping[str, Any]) -> str:
    """One stage for people: its name, what became of it, seconds, its headline or the reason."""
    said = record["found"].get("headline", "")
    if record["status"] != "ok":
        said = "; ".join(filter(None, (record["reason"], said)))
    return f"{record['stage']:22} {record['status']:8} {record['seconds']:6.1f} s  {said}"


def run_stage(stage: Stage, setup: Setup) -> dict[str, Any]:
    """Run one stage to its end, or to its limit; write and return what became of it."""
    notes, log = setup.work / "stages" / f"{stage.name}.notes", setup.work / "logs" / f"{stage.name}.log"
    for path in (notes, log):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    job = {
        "function": stage.function, "options": dict(stage.options), "setup": setup.as_json(), "notes": str(notes)
    }  # fmt: skip
    began, moment = time.monotonic(), datetime.now(UTC).isoformat(timespec="milliseconds")
    code = _run_child(job, log, setup.work, stage.limit_s)
    found = json.loads(notes.read_text()) if notes.exists() else {}
    skipped = found.pop("skipped", None)
    if code is None:
        status, reason = "timeout", f"ended at its limit of {stage.limit_s:.0f} s"
    elif code:
        status, reason = "failed", cause(log.read_text(errors="replace"))
    else:
        status, reason = ("skipped", skipped) if skipped else ("ok", "")
    record = {
        "stage": stage.name, "status": status, "reason": reason, "seconds": round(time.monotonic() - began, 1),
        "began": moment, "shape": setup.shape, "found": found,
    }  # fmt: skip
    if status in ("failed", "timeout"):
        record["log"] = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    write_json(setup.work / "stages" / f"{stage.name}.json", record)
    notes.unlink(missing_ok=True)
    return record


def cause(log: str) -> str:
    """The last line of a log that names an error, else its last line."""
    lines = [each.strip() for each in log.splitlines() if each.strip()] or ["it printed nothing"]
    return next((each for each in reversed(lines) if _CAUSE.search(each)), lines[-1])[:400]


def _record(setup: Setup, name: str) -> dict[str, Any] | None:
    path = setup.work / "stages" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _run_child(job: Mapping[str, Any], log: Path, work: Path, limit_s: float) -> int | None:
    """The exit code of a stage's process; None where it took longer than it may. No process of it is left."""
    _end_marked(work)  # what an earlier run left, where it was killed
    with log.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.on_card.child"],
            stdin=subprocess.PIPE, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | {_MARK: str(work)},
        )  # fmt: skip
    assert child.stdin is not None
    try:
        with suppress(BrokenPipeError):  # it died; its log and exit code say why
            child.stdin.write(json.dumps(job).encode())
            child.stdin.close()
        return child.wait(limit_s - _GRACE_S if limit_s > 2 * _GRACE_S else limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        _end_marked(work)


def _end_marked(work: Path) -> None:
    """End every process that carries the mark of a work folder's stages in its environment."""
    wanted = f"{_MARK}={work}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
        except OSError:
            continue  # ended meanwhile, or another user's
