"""Completion in shells, by the shells themselves: what Tab gives behind a line in bash, zsh and fish."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from planner.cli import completion
from planner.cli.app import Carrier
from planner.cli.completion import commands, script
from tests.conftest import missing

#: A line, what Tab offers first behind it, and something that it must not offer.
LINES = [
    ("optimize ch", "check", "apply"),
    ("optimize --ver", "--version", "check"),
    ("optimize check --mo", "--model", "--gpu"),
    ("optimize check --gpu RTX-409", "RTX-4090", "RTX-5090"),
    ("optimize check --model Qwen2.5-32B-Instruct-A", "Qwen2.5-32B-Instruct-AWQ", "Llama"),
    ("optimize check --weights w4a16-g12", "w4a16-g128", "awq"),
    ("optimize check --kv-cache-dtype fp8_e5", "fp8_e5m2", "q4"),
    ("optimize init --use do", "documents", "chat"),
    ("optimize init --prefer co", "cost", "quality"),
    ("optimize launch --target kubern", "kubernetes", "compose"),
    ("optimize completion z", "zsh", "bash"),
    ("optimize schema cert", "certificate", "plan"),
    ("optimize show --graph mer", "mermaid", "dot"),
]


def _shell(name: str) -> tuple[str, Path]:
    """A shell's program and the root of its files: this machine's, else as `make shells` unpacked it."""
    found = shutil.which(name)
    if found is not None:
        return found, Path("/")
    root = Path(os.environ.get("TIGHTFIT_SHELLS", Path.home() / ".cache/tightfit/shells")) / "root"
    program = next((each for each in (root / "bin" / name, root / "usr/bin" / name) if each.exists()), None)
    if program is None:
        missing(f"{name} is not here", "make shells")
    return str(program), root


def test_scripts_hold_every_command_and_option() -> None:
    known = tuple(commands())
    assert {command.name for command in known} >= {"plan", "check", "report", "doctor", "init", "completion"}
    for shell in ("bash", "zsh", "fish"):
        text = script(shell)
        assert all(command.name in text for command in known)
        spelled = (spelling for command in known for option in command.options for spelling in option.spellings)
        assert all(spelling.lstrip("-") in text for spelling in spelled)


@pytest.mark.parametrize(("line", "offered", "not_offered"), LINES)
def test_bash_completes(line: str, offered: str, not_offered: str) -> None:
    words = " ".join(f"'{word}'" for word in line.split())
    program = (
        f"{script('bash')}\nCOMP_WORDS=({words}); COMP_CWORD={len(line.split()) - 1}; _optimize; echo ${{COMPREPLY[*]}}"
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert offered in done.stdout.split() and not_offered not in done.stdout


def test_bash_leaves_files_to_the_shell() -> None:
    program = f'{script("bash")}\nCOMP_WORDS=(optimize plan exa); COMP_CWORD=2; _optimize; echo "${{#COMPREPLY[@]}}"; complete -p optimize'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["0", "complete -o default -F _optimize optimize"]


def test_fish_completes(tmp_path: Path) -> None:
    fish, root = _shell("fish")
    lines = [f"set fish_function_path {root}/usr/share/fish/functions", script("fish")]
    for line, _, _ in LINES:
        lines += ["echo ---", f"complete -C '{line}'"]
    (tmp_path / "lines.fish").write_text("\n".join(lines))
    libraries = f"{root}/usr/lib/x86_64-linux-gnu"
    environment = os.environ | {"HOME": str(tmp_path), "LD_LIBRARY_PATH": libraries if root != Path("/") else ""}
    done = subprocess.run(
        [fish, "--no-config", str(tmp_path / "lines.fish")], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )  # fmt: skip
    answers = done.stdout.split("---\n")[1:]
    for (line, offered, not_offered), answer in zip(LINES, answers, strict=True):
        names = [each.split("\t")[0] for each in answer.splitlines()]
        assert offered in names and not_offered not in names, (line, names)


def test_zsh_completes(tmp_path: Path) -> None:
    zsh, root = _shell("zsh")
    (tmp_path / "optimize.zsh").write_text(script("zsh"))
    begin = (
        "source optimize.zsh; PS1='ready> '; unsetopt zle_bracketed_paste; bindkey '^I' complete-word; setopt no_beep\n"
    )
    if root != Path("/"):
        functions = f"fpath=({root}/usr/share/zsh/functions/**/*(/N))"
        begin = f"module_path=({root}/usr/lib/x86_64-linux-gnu/zsh/5.9); {functions}; {begin}"
    process, terminal = pty.fork()
    if not process:
        os.chdir(tmp_path)
        os.execve(zsh, ["zsh", "-f", "-i"], os.environ | {"HOME": str(tmp_path), "TERM": "dumb"})
    try:
        os.write(terminal, begin.encode())
        _read(terminal, "ready> ")
        for line, offered, _ in LINES:
            os.write(terminal, f"{line}\t".encode())
            _read(terminal, offered)
            os.write(terminal, b"\x15")  # Ctrl-U: the line away
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


def _read(terminal: int, awaited: str) -> None:
    """Read what a terminal shows until something awaited is there."""
    seen, until = "", time.monotonic() + 30
    while awaited not in seen:
        assert time.monotonic() < until, (awaited, seen)
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 1 << 16).decode(errors="replace")


def test_choices_are_found_where_newer_versions_of_typer_keep_them() -> None:
    def asked(annotation: object) -> SimpleNamespace:
        return SimpleNamespace(type_descriptor=SimpleNamespace(annotation=annotation))

    assert completion._choices(asked(Literal["bash", "fish"])) == ("bash", "fish")
    assert completion._choices(asked(Carrier)) == ("local", "ray")
    assert completion._choices(asked(str)) == completion._choices(asked(list[str])) == ()
