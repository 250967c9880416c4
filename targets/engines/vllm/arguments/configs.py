"""The keys of flags that take JSON (`--speculative-config`, …): which there are, what each takes, in which versions.

`configs.jsonl`, made by `benchmarks/read_vllm_configs.py` from the engine's own configuration classes (0.32), which forbid other keys, and
from the sources of 0.6 to 0.33. Types are JSON's, as pydantic reads them: a number in quotes is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.errors import InputError, Reason, unknown_name
from passes.record import dataclass
from targets.engines.vllm.arguments.table import CHOICES_OF
from targets.engines.vllm.rules.versions import parse_version

_INTEGER, _NUMBER = re.compile(r"[+-]?\d+(\.0*)?"), re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_TRUTH = frozenset({"0", "1", "true", "false", "yes", "no", "on", "off", "t", "f", "y", "n"})
#: Whether a value is of a JSON type, as pydantic reads it where it is not strict.
_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "boolean": lambda value: isinstance(value, bool) or str(value).lower() in _TRUTH,
    "integer": lambda value: isinstance(value, int | float | str) and bool(_INTEGER.fullmatch(str(int(value) if value is True else value))),
    "number": lambda value: isinstance(value, int | float | str) and bool(_NUMBER.fullmatch(str(value))),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a configuration. `types`: of JSON, none where any will do; `choices`: the only words that it takes in `CHOICES_OF`; `since`,
    `until`: the first and the last of the versions read that have it.
    """

    types: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    since: str | None = None
    until: str | None = None


@lru_cache(maxsize=1)
def _configs() -> dict[str, dict[str, Key]]:
    """The keys of each configuration, by flag and by the keys above (`compilation-config.pass_config`)."""
    text = Path(__file__).with_name("configs.jsonl").read_text(encoding="utf-8")
    found: dict[str, dict[str, Key]] = {}
    for row in map(json.loads, text.splitlines()):
        key = Key(tuple(row.get("types", ())), tuple(row.get("choices", ())), row.get("since"), row.get("until"))
        found.setdefault(row["of"], {})[row["key"]] = key
    return found


def judged(flag: str, value: Any, version: str | None) -> Iterator[Reason]:
    """Give what a version has against the value of a flag that takes JSON; nothing for other flags, or for keys that are anybody's to name.

    Raises InputError for a key that no version has, with the nearest, and for a value of another type.
    """
    if isinstance(value, dict):
        yield from _keys(flag, value, version)
    elif flag in _configs() and not str(value).isdigit():  # `--compilation-config 3` is a level
        raise InputError(f"--{flag} {value!r:.100} is no JSON object", remedy=f"write --{flag} '{{\"key\": value}}'")


def _keys(of: str, said: Mapping[str, Any], version: str | None) -> Iterator[Reason]:
    keys, configs = _configs().get(of), _configs()
    for written, value in said.items():
        name = str(written).replace("-", "_")
        if keys is not None:
            if name not in keys:
                listed = ", ".join(key for key, each in keys.items() if each.until is None)
                raise unknown_name(f"key of --{of}", str(written), keys, remedy=f"vLLM {CHOICES_OF} has: {listed}")
            _require(of, name, keys[name], value, version)
            yield from _not_there(of, name, keys[name], version)
        if isinstance(value, dict) and f"{of}.{name}" in configs:
            yield from _keys(f"{of}.{name}", value, version)


def _require(of: str, name: str, key: Key, value: Any, version: str | None) -> None:
    """Refuse a value of another type, and a word that is none of the few."""
    if key.types and not any(_TYPES[each](value) for each in key.types):
        wanted = " or ".join(each for each in key.types if each != "null")
        raise InputError(
            f"--{of}: {name} is {json.dumps(value)[:100]}, and {_article(wanted)} is expected",
            remedy=f"vLLM takes: {', '.join(key.choices)}" if key.choices else f"write {name} as {_article(wanted)}",
        )
    listed = version is None or parse_version(version) >= parse_version(CHOICES_OF)
    if (
        listed
        and key.choices
        and isinstance(value, str)
        and value.lower() not in {each.lower() for each in key.choices}
    ):
        if "integer" in key.types and value.isdigit():
            return
        raise unknown_name(
            f"{name} of --{of}", value, key.choices, remedy=f"vLLM {CHOICES_OF} takes: {', '.join(key.choices)}"
        )


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aio' else 'a'} {kind}"


def _not_there(of: str, name: str, key: Key, version: str | None) -> Iterator[Reason]:
    """A key that a version has not yet, or no longer: its configuration class forbids it."""
    if version is None:
        return
    if key.since and parse_version(version) < parse_version(key.since):
        why = f"it came with {key.since}"
    elif key.until and parse_version(version) > parse_version(key.until):
        why = f"it went after {key.until}"
    else:
        return
    message = f"vLLM {version} has no key {name} in --{of} ({why}): it stops before it loads anything"
    yield Reason("flag_not_in_version", message, f"leave {name} out of --{of}")


def gone(flag: str, value: Any) -> Iterator[str]:
    """Give a note for each key that newer versions have no more, where no version is named."""
    for name, key in _configs().get(flag, {}).items():
        if isinstance(value, dict) and name in value and key.until:
            yield f"{name} of --{flag} went after vLLM {key.until}: newer ones stop at it; name the version with --engine-version"
