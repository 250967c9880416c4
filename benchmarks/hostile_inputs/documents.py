"""Plans, results and traces, damaged, and given to every command that reads one."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

from benchmarks.hostile_inputs.mutate import broken, mutated, written
from benchmarks.hostile_inputs.surfaces import TINY, command, difference, only, planned, tiny_checkpoint
from passes.files.manifest import write_manifest
from planner.apply import apply
from planner.plan.codec import to_json
from planner.plan.document import digest
from planner.plan.make import plan
from planner.spec.parse import load_spec

#: What reads a plan, a result or either, at `WHAT`; what it makes goes to `OUT`. No command finds an engine.
_COMMANDS = (
    ["show", "WHAT"], ["show", "WHAT", "--json"], ["show", "WHAT", "--graph", "text"], ["explain", "WHAT", "why not awq"],
    ["diff", "WHAT", "GOOD"], ["report", "WHAT", "-o", "OUT/a.html"], ["launch", "WHAT", "--target", "all", "-o", "OUT"],
    ["drift", "WHAT", "--engine-version", "0.33"], ["check", "WHAT"], ["apply", "WHAT", "-o", "OUT/made"],
    ["verify", "WHAT", "--offline"], ["verify", "WHAT", "--engine", "/nowhere/python"],
)  # fmt: skip
_TRACE = [{"time": 0.5 * number, "input": 100 + number, "output": 20} for number in range(6)]


def commanded(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    """A plan, edited where its digest agrees again, for one of the commands."""
    good, path = to_json(planned()), folder / "a.plan.json"
    document = mutated(rng, good, 3)
    with contextlib.suppress(ValueError, TypeError):
        document["digest"] = digest(document)
    path.write_bytes(written(rng, document))
    (folder / "good.plan.json").write_text(json.dumps(good), encoding="utf-8")
    arguments = _arguments(rng, folder, path)
    return lambda: command(arguments), f"{arguments[0]} {difference(good, document)}"


def _arguments(rng: Random, folder: Path, what: Path) -> list[str]:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    stands = {
        "WHAT": str(what),
        "GOOD": str(folder / "good.plan.json"),
        "OUT": str(out),
        "OUT/a.html": f"{out}/a.html",
        "OUT/made": f"{out}/made",
    }
    return [stands.get(word, word) for word in rng.choice(_COMMANDS)]


@cache
def _result(place: Path) -> Path:
    """A result's folder, made once: of a model that is served as it is."""
    model = place / "model"
    model.mkdir(parents=True)
    raw, data = tiny_checkpoint()
    (model / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    (model / "model.safetensors").write_bytes(raw + data)
    spec = {"model": str(model), "target": {"gpu": "rtx-4090"}, "engine": "vllm", "workload": {"context": 128}}
    return apply(plan(spec), place / "result").out


def results(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    """A result's folder with one of its documents damaged, for one of the commands."""
    place = folder / "copy"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(_result(folder / "made"), place)
    (folder / "good.plan.json").write_bytes((place / "plan.json").read_bytes())
    documents = sorted(path for path in place.rglob("*.json") if path.is_file())
    file, how = rng.choice(documents), rng.random()
    good = json.loads(file.read_bytes())
    if how < 0.7:
        bad = mutated(rng, good, 3)
        if "digest" in bad and file.name == "plan.json":
            with contextlib.suppress(ValueError, TypeError):
                bad["digest"] = digest(bad)
        file.write_bytes(written(rng, bad))
        shown = difference(good, bad)
    else:
        file.unlink()
        shown = "gone"
        if how < 0.8:
            file.mkdir()
            shown = "a folder"
    if rng.random() < 0.5 and file.name != "manifest.json":
        with contextlib.suppress(OSError):
            write_manifest(place)
    arguments = _arguments(rng, folder, place)
    return lambda: command(arguments), f"{arguments[0]} {file.name} {shown}"


def traces(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    """A trace of load, by its spec."""
    lines = [json.dumps(each) for each in mutated(rng, _TRACE, 3)]
    if rng.random() < 0.3:
        at = rng.randrange(len(lines)) if lines else 0
        lines[at : at + 1] = [broken(rng, lines[at] if lines else "")]
    text = rng.choice(["\n", "\n", "\n", "\r\n", "\u2028"]).join(lines)
    only(folder, **{"trace.jsonl": text.encode("utf-8", "surrogatepass")})
    (folder / "a.yaml").write_text(
        "model: Qwen/Qwen2.5-1.5B-Instruct\ntarget: { gpu: rtx-4090 }\nengine: vllm\nworkload: { context: 8192, trace: ./trace.jsonl }\n"
    )
    file = folder / "a.yaml"
    return (lambda: plan(load_spec(file))) if rng.random() < 0.2 else (lambda: load_spec(file)), text
