"""A stream that knows ASCII only: the same answers and exit codes, readable, and JSON without loss."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

from passes.steps.progress import Progress
from planner.cli.encoding import json_line, print_what_can_be_printed
from planner.cli.progress import shown
from tests import forked
from tests.forked import Ended

_FITS = "model: Llama-3.2-1B-Instruct\ntarget: { gpu: rtx-4090 }\nworkload: { context: 4096, concurrency: 1 }\n"
_LARGE = "model: Llama-3.3-70B-Instruct\ntarget: { gpu: T4 }\nworkload: { context: 4096, concurrency: 1 }\ngoals: { decode: 20 tok/s }\n"

_COMMANDS = {
    "help": (["--help"], 0),
    "plan": (["plan", "fits.yaml"], 0),
    "plan with launch files": (["plan", "fits.yaml", "--launch"], 0),
    "no plan": (["plan", "große.yaml"], 3),
    "show": (["show", "fits.plan.json"], 0),
    "graph": (["show", "fits.plan.json", "--graph", "text"], 0),
    "explain": (["explain", "fits.yaml"], 0),
    "what if": (["explain", "fits.plan.json", "what if 2 cards"], 0),
    "diff": (["diff", "fits.plan.json", "other.plan.json"], 0),
    "check": (["check", "--model", "Llama-3.1-8B-Instruct", "--gpu", "T4", "--context", "131072"], 3),
    "targets": (["targets"], 0),
    "models": (["models"], 0),
    "schema": (["schema"], 0),
    "init": (["init", "größer.yaml"], 0),
    "mistake": (["show", "kein → plan"], 2),
    "wrong word": (["chék"], 2),
}


def optimize(arguments: list[str], folder: Path, encoding: str, columns: str = "140") -> Ended:
    return forked.run(
        forked.optimize, *arguments, folder=folder, environment={"PYTHONIOENCODING": encoding, "COLUMNS": columns}
    )


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    (folder / "fits.yaml").write_text(_FITS)
    (folder / "große.yaml").write_text(_LARGE)
    (folder / "other.yaml").write_text(_FITS.replace("4096", "8192") + "passes: { kv_cache: [fp8] }\n")
    for name in ("fits", "other"):
        assert optimize(["plan", f"{name}.yaml"], folder, "utf-8").returncode == 0
    return folder


@pytest.fixture
def folder(planned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(planned, tmp_path / "copy"))


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_works_on_an_ascii_stream(name: str, folder: Path) -> None:
    arguments, code = _COMMANDS[name]
    plain = optimize(arguments, folder, "ascii")
    assert plain.returncode == code, plain.stderr
    both = plain.stdout + plain.stderr
    assert both.isascii() and "internal error" not in both and "\\u" not in plain.stderr


@pytest.mark.parametrize("name", sorted(_COMMANDS.keys() - {"help", "schema", "models", "init"}))
def test_every_document_is_the_same_on_an_ascii_stream(name: str, folder: Path) -> None:
    arguments, code = _COMMANDS[name]
    rich, again = optimize([*arguments, "--json"], folder, "utf-8"), optimize([*arguments, "--json"], folder, "ascii")
    assert rich.returncode == again.returncode == code
    assert again.stdout.isascii() and json.loads(again.stdout) == json.loads(rich.stdout)


def test_look_alikes_are_readable(folder: Path) -> None:
    said = optimize(["plan", "fits.yaml"], folder, "ascii").stdout
    assert "?" not in said
    assert "source -> " in said and "###" in said and " ... " in said
    latin = optimize(["plan", "große.yaml"], folder, "latin-1")
    assert latin.returncode == 3 and "No plan meets the goals" in latin.stdout


def test_json_is_never_lost() -> None:
    document = {"→": "größe \udce9"}
    for encoding in ("ascii", "latin-1", "utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        line = json_line(document, stream)
        assert line.isascii() and json.loads(line) == document
    utf = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert "größe →" in json_line("größe →", utf)


def test_bars_on_an_ascii_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        print_what_can_be_printed()
        console = Console(file=sys.stdout, force_terminal=True, width=120)
        with shown(console) as report:
            for done in range(4):
                report(Progress("walk", done, 3, "drop → gptq", float(done)))
        sys.stdout.flush()
        said = raw.getvalue()
    assert said.isascii() and b"drop -> gptq" in said and b"3/3" in said
