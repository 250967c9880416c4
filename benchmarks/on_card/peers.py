"""GPTQ W4A16 g128 of the same four blocks on the same tokens by an outside tool, in its own Python, through this project's driver of it.

Seconds a block: from the first line of the tool's own log that names a block to the first that names the next, so loading and saving do not
count.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.on_card.measuring import by_block, lapses
from benchmarks.on_card.shapes import text_size, walked
from benchmarks.on_card.staging import Notes, Setup, cause
from benchmarks.on_card.tools import find_tool
from passes.backends import libraries
from passes.chain import find_backend
from passes.files.checkpoint import write_shard
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.formats.format import Format
from passes.formats.gptq import Gptq
from passes.quantize.quantize import Quantize

_PROGRAM = Path(__file__).with_name("peer_program.py")
_DRIVERS = Path(libraries.__file__).with_name("drivers")
#: The same bits, groups and order in the form that the tool writes.
_FORMS: dict[str, Format] = {"llmcompressor": PackQuantized(4, 128), "gptqmodel": Gptq(4, 128)}
#: A block's number in a line that says that it is being quantized.
_BLOCK = re.compile(r"(?:Quantizing .*?model\.layers\.(\d+)\.|Quantiz\w+ layer (\d+) of)")
_ABOUT_OURS = "apply_gptq"
_END_LINES = 40


def peer(setup: Setup, note: Notes, name: str) -> None:
    """Run the tool; raises NotHereError where it is not there."""
    tool = find_tool(setup, name)
    work = walked(setup, name)
    size = text_size(setup)
    place = work.run.folder
    place.mkdir(parents=True, exist_ok=True)
    write_shard(place / "tokens.safetensors", {"input_ids": work.run.text})
    backend = find_backend(name)
    pass_ = Quantize("gptq", _FORMS[name], backend=name)
    job = {
        "source": str(work.folder), "tokens": str(place / "tokens.safetensors"), "out": str(place / "out"),
        "options": dict(backend.options(pass_)),
    }  # fmt: skip
    (place / "job.json").write_text(json.dumps(job))
    note(tool=name, version=tool.version, options=job["options"], samples=size.samples, length=size.length)
    command = [str(tool.python), str(_PROGRAM), str(_DRIVERS / f"{name}.py"), str(place / "job.json")]
    environment = tool.environment | dict(backend.environment)
    began = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, bufsize=1, cwd=place
    ) as running:
        assert running.stdout is not None
        starts, said, end = watched(running.stdout, note)
    if running.returncode:
        raise RuntimeError(f"{name} ended with code {running.returncode}: {cause(end)}")
    note(**json.loads(said), whole_s=round(time.monotonic() - began, 1))
    shutil.rmtree(place / "out", ignore_errors=True)
    if len(starts) < 2:
        raise RuntimeError(f"{name}'s log names {len(starts)} blocks, so its seconds a block are not known")
    _compare(setup, note)


def watched(lines: IO[str], note: Notes) -> tuple[Sequence[float], str, str]:
    """When each block was first named, as noted too; the last line that is JSON; the end of what was printed."""
    starts: list[float] = []
    said, end = "{}", deque[str](maxlen=_END_LINES)
    for line in filter(None, (each.strip() for each in lines)):
        print(line, flush=True)
        end.append(line)
        if line.startswith("{"):
            said = line
        found = _BLOCK.search(line)
        if found and int(found[1] or found[2]) == len(starts):
            starts.append(time.monotonic())
            if len(starts) > 1:
                note(walk=by_block(lapses(starts)))
    return starts, said, "\n".join(end)


def _compare(setup: Setup, note: Notes) -> None:
    """Ours of the same run beside it."""
    theirs = note.found["walk"]["block_s"]
    ours = _ours(setup)
    ratio = None if ours is None else round(ours / theirs, 3)
    note(ours_block_s=ours, ratio=ratio)
    card = note.found["card_peak_gib"]
    said = "" if ratio is None else f"; ours {ours:.2f} s, {ratio:.2f} of it"
    note(headline=f"{theirs:.2f} s a block, card {card} GiB{said}")


def _ours(setup: Setup) -> float | None:
    """Seconds a block of our own stage; None where it did not run."""
    path = setup.work / "stages" / f"{_ABOUT_OURS}.json"
    found: dict[str, Any] = json.loads(path.read_text())["found"] if path.exists() else {}
    return found["walk"]["block_s"] if "walk" in found else None
