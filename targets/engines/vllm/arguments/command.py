"""Reads a command that starts vLLM's server, as people paste it: `vllm serve …`, `python -m vllm.entrypoints.openai.api_server …`,
`docker run … vllm/vllm-openai:v0.11.0 …`, with variables and wrappers in front.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from passes.errors import InputError
from passes.ir.fields import json_value, shown
from passes.record import dataclass
from targets.engines.vllm.arguments.config_file import config_flags
from targets.engines.vllm.arguments.table import Flag, find_flag
from targets.numbers import whole_number

_VARIABLE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_CONTAINERS, _SHELLS, _PYTHON = ("docker", "podman", "nerdctl"), ("bash", "sh", "zsh"), re.compile(r"python[\d.]*")
_SERVER = re.compile(r"vllm\.entrypoints\.(?:openai\.)?api_server|vllm\.entrypoints\.cli\.main|vllm")
#: Options of `docker run` that take no value; all others take the next word, where they have none behind `=`.
_DOCKER_SWITCHES = {
    "-d", "-i", "-t", "-it", "-ti", "-dit", "-itd", "--detach", "--interactive", "--tty", "--rm", "--privileged", "--init", "-P",
    "--publish-all", "--no-healthcheck", "--read-only", "--oom-kill-disable", "--sig-proxy", "-q", "--quiet",
}  # fmt: skip
_TAG = re.compile(r":v?(\d+\.\d+(?:\.\d+)?(?:\.post\d+)?)")
_NUMBER = re.compile(r"-\d+(\.\d+)?")
#: What runs a text as a command (`-c`, `-lc`), what ends one of several commands of a line, where output goes.
_RUNS, _ENDS, _GOES = re.compile(r"-[a-z]*c"), re.compile(r"[;|&]+"), re.compile(r"&?[<>]+[&|]?")
#: More than the first number of a release of vLLM: other images are tagged by the month (`nvcr.io/nvidia/vllm:25.10-py3`).
_MONTHLY = 10


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """What a command asks for: `flags` by vLLM's names without dashes, each True, False, a text, a list of texts, or keys with their
    values. `words`: what stands before them without dashes. `version`, `cards`: of the image and of the container.
    """

    words: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None
    cards: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> str | None:
        """The model, by its place or by `--model`. Raises InputError for keys or a list where its name belongs."""
        named = self.words[0] if self.words else self.flags.get("model")
        if named is not None and not isinstance(named, str):
            raise InputError(f"--model names a model, found {shown(named)}", remedy="write --model NAME or FOLDER")
        return named


def is_command(words: Sequence[str]) -> bool:
    """Return whether words start a server of vLLM, not only its flags."""
    return any(_program(word) for word in words)


def read_command(words: Sequence[str]) -> ServeCommand:
    """Return what a command asks for, with the file of `--config`. Raises InputError for what is no server of vLLM, and for flags that it
    has not.
    """
    words = tuple(part for word in words for part in (_served_of(word) if _quoted(word, len(words)) else (word,)))
    command = _read(words)
    named, contained = _config_of(command), any(PurePosixPath(word).name in _CONTAINERS for word in words)
    if contained and named is not None and not Path(named).is_file():
        return replace(
            command, notes=(*command.notes, f"--config {named} lies in the container: what it says is not read")
        )
    return with_config_file(command)


def with_config_file(command: ServeCommand) -> ServeCommand:
    """Return a command with what the file of its `--config` says, which its own flags overrule. Raises InputError for what is none."""
    named = _config_of(command)
    return command if named is None else replace(command, flags={**config_flags(Path(named)), **command.flags})


def _config_of(command: ServeCommand) -> str | None:
    """The file of `--config`."""
    named = command.flags.get("config")
    if named is not None and not isinstance(named, str):
        raise InputError(f"--config is {shown(named)}", remedy="name one .yaml file")
    return named


def _read(words: tuple[str, ...]) -> ServeCommand:
    """What the words of a command ask for."""
    start = _start(words)
    if start is None:
        raise InputError(
            f"{shlex.join(words)!r:.200} starts no server of vLLM", remedy="paste `vllm serve MODEL …` after the --"
        )
    variables = {match[1]: match[2] for word in words[:start] if (match := _VARIABLE.fullmatch(word))}
    program, rest = PurePosixPath(words[start]).name, words[start + 1 :]
    if program in _CONTAINERS:
        return _container(rest)
    if program in _SHELLS:
        runs = next((number for number, word in enumerate(rest[:-1]) if _RUNS.fullmatch(word)), None)
        if runs is None:
            raise InputError(f"`{program}` without -c says no command", remedy="paste the command itself")
        return _read(_served_of(rest[runs + 1]))
    if _PYTHON.fullmatch(program):
        module = rest[1] if rest[:1] == ("-m",) and len(rest) > 1 else None
        if module is None or not _SERVER.fullmatch(module):
            raise InputError(
                f"{shlex.join(words)!r:.200} starts no server of vLLM",
                remedy="paste `vllm serve …`, or `python -m vllm.entrypoints.openai.api_server …`",
            )
        rest = rest[2:]
        serves = module.endswith("api_server") or rest[:1] == ("serve",)
        rest = rest[1:] if rest[:1] == ("serve",) else rest
    else:
        serves, rest = rest[:1] == ("serve",), rest[1:]
    if not serves:
        raise InputError("only `vllm serve` starts a server", remedy="paste `vllm serve MODEL …`")
    return _with_visible(read_flags(rest), variables)


def read_flags(words: Sequence[str], known: Iterable[str] = ()) -> ServeCommand:
    """Return what flags of the server ask for, the words between them included. Raises InputError for flags that vLLM has not."""
    left, plain, notes = list(words), list[str](), list[str]()
    flags: dict[str, Any] = {}
    while left:
        word = left.pop(0)
        if not word.startswith("-") or _NUMBER.fullmatch(word) or word == "-":
            plain.append(word)
            continue
        name, has_value, value = word.partition("=")
        if level := re.fullmatch(r"-O(\d)", name):
            name, has_value, value = "-O", "=", level[1]
        flag, off, keys = find_flag(name, known)
        told: Any = _json(value) if has_value else _values(flag, left)
        if flag.takes == "none":
            told = not off if not has_value else (value.lower() not in ("false", "0")) is not off
        if keys:
            before = flags.get(flag.name)
            told = _merged(before if isinstance(before, dict) else {}, keys, told)
        elif flag.name in flags and flags[flag.name] != told:
            notes.append(f"--{flag.name} is given twice: the last holds")
        flags[flag.name] = told
    return ServeCommand(tuple(plain), flags, notes=tuple(notes))


def _values(flag: Flag, left: list[str]) -> Any:
    """What a flag takes of the words behind it."""
    if flag.takes == "none":
        return True

    def follows() -> bool:
        return bool(left) and (not left[0].startswith("-") or _NUMBER.fullmatch(left[0]) is not None)

    if flag.takes == "values":
        taken = []
        while follows():
            taken.append(left.pop(0))
        return taken
    if follows():
        return _json(left.pop(0))
    if flag.takes == "optional":
        return True
    raise InputError(f"--{flag.name} lacks its value", remedy=f"write --{flag.name} VALUE")


def _json(text: str) -> Any:
    """A JSON object or list; else the text as it is: a template begins with a brace too."""
    if text[:1] not in ("{", "[") or text[:2] in ("{{", "{%", "{#"):
        return text
    return json_value(text, f"{text!r:.200}", remedy='write it in single quotes: \'{"method": "mtp"}\'')


def _merged(before: dict[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """A mapping with a value under keys, as vLLM's parser makes of `--speculative-config.method mtp`."""
    head, *rest = keys
    inner = before.get(head)
    told = _plain(value) if not rest else _merged(inner if isinstance(inner, dict) else {}, rest, value)
    return {**before, head: told}


def _plain(value: Any) -> Any:
    """A value behind dots, which JSON would read: numbers and truth."""
    try:
        return json_value(value, "a flag") if isinstance(value, str) else value
    except InputError:
        return value


def _split(text: str) -> list[str]:
    """The words of a command as a shell splits them."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{text!r:.200} is no command: {error}", remedy="close every quote in it") from None


def _served_of(text: str) -> tuple[str, ...]:
    """The words of the one command of a shell's line that serves, or else starts a program which may, without where its output goes; where
    none does, all.
    """
    _split(text)  # which says what is left open
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""  # which would end a word that holds one (`--api-key a#b`), and the command with it
    commands: list[list[str]] = [[]]
    left = list(lexer)
    while left:
        word = left.pop(0)
        if _ENDS.fullmatch(word):
            commands.append([])
        elif _GOES.fullmatch(word):
            if commands[-1][-1:] and commands[-1][-1].isdigit():  # `2>`
                commands[-1].pop()
            del left[:1]
        else:
            commands[-1].append(word)
    may = [words for words in commands if any(map(_program, words))]
    return tuple(next((words for words in may if _serving(words)), next(iter(may), _split(text))))


def _serving(words: Sequence[str]) -> list[int]:
    """Where `vllm serve` stands among the words."""
    named = (number for number, word in enumerate(words) if PurePosixPath(word).name == "vllm")
    return [number for number in named if tuple(words[number + 1 : number + 2]) == ("serve",)]


def _start(words: Sequence[str]) -> int | None:
    """Where the program stands that serves: `vllm serve`, before a word that only names vLLM (`uv run --with vllm vllm serve`)."""
    starts = [number for number, word in enumerate(words) if _program(word)]
    serving = _serving(words) if starts and PurePosixPath(words[starts[0]]).name == "vllm" else []
    return next(iter(serving or starts), None)


def _quoted(word: str, count: int) -> bool:
    """Whether a word is a whole command in quotes."""
    return count == 1 and " " in word.strip()


def _program(word: str) -> bool:
    name = PurePosixPath(word).name if "=" not in word else ""
    return name == "vllm" or name in (*_CONTAINERS, *_SHELLS) or _PYTHON.fullmatch(name) is not None


def _with_visible(command: ServeCommand, variables: Mapping[str, str]) -> ServeCommand:
    """With the cards that CUDA_VISIBLE_DEVICES leaves."""
    listed = variables.get("CUDA_VISIBLE_DEVICES")
    cards = len([part for part in listed.split(",") if part.strip()]) if listed else None
    return ServeCommand(command.words, command.flags, command.version, cards, command.notes)


def _container(words: Sequence[str]) -> ServeCommand:
    """`docker run OPTIONS IMAGE ARGUMENTS`: the image's entry point is the server, unless the arguments name another."""
    left, variables = list(words), dict[str, str]()
    cards: int | None = None
    entry: str | None = None
    runs_in = "exec" in left[:2]
    while left and left[0] in ("run", "container", "compose", "exec"):
        left.pop(0)
    while left and left[0].startswith("-"):
        name, has_value, value = left.pop(0).partition("=")
        if not has_value and name not in _DOCKER_SWITCHES:
            value = left.pop(0) if left else ""
        if name in ("-e", "--env") and (match := _VARIABLE.fullmatch(value)):
            variables[match[1]] = match[2]
        elif name == "--gpus":
            cards = _container_cards(value)
        elif name == "--entrypoint":
            entry = value
    if not left:
        raise InputError(
            "`docker run` without an image", remedy="paste the whole command: … vllm/vllm-openai:v0.11.0 …"
        )
    image, rest = left[0], left[1:]
    if runs_in:  # `image` is the container's name
        return _with_visible(_read(tuple(rest)), variables)
    tag = _TAG.search(image)
    tag = None if tag is None or int(tag[1].partition(".")[0]) >= _MONTHLY else tag
    whole = (*([entry] if entry else ()), *rest)
    command = _read(whole) if whole and _program(whole[0]) else read_flags(rest)
    unpinned = () if tag else (f"{image} names no version of vLLM: the newest known is taken",)
    visible = _with_visible(command, variables).cards
    return ServeCommand(
        command.words, command.flags, tag[1] if tag else None, visible or cards, (*command.notes, *unpinned)
    )


def _container_cards(value: str) -> int | None:
    """The number of cards of `--gpus 2`, `--gpus '"device=0,1"'`; None for all."""
    text = value.strip("\"'")
    if text.isdigit():
        return whole_number(text, "--gpus")
    return len(text.removeprefix("device=").split(",")) if text.startswith("device=") else None
