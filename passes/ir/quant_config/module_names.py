"""Matches names of modules as the lists of a `quantization_config` write them: plain, with `*`, or `re:`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeVar

from passes.ir.fields import Fields
from passes.ir.quant_config.patterns import compiled

#: Says whether a module (full name) is meant.
Matches = Callable[[str], bool]

T = TypeVar("T")

#: Keys whose lists name what is left dense; all tools' taken together.
_LISTS = (
    "ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules", "exclude", "skip_modules",
)  # fmt: skip
_DROPPED = re.compile(r"\.\.\.\d+ more entries dropped")
_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")


@lru_cache(maxsize=1 << 12)
def matcher(pattern: str) -> Matches:
    """Return the test for one entry of a list; a plain name means what stands below it too."""
    if pattern.startswith("re:"):
        expression = compiled(pattern[3:])
        return lambda name: expression.match(name) is not None
    if is_pattern(pattern):
        wild = re.compile(fnmatch.translate(pattern) + "|" + fnmatch.translate(pattern + ".*"))
        return lambda name: wild.match(name) is not None
    return lambda name: name == pattern or name.startswith(pattern + ".") or f".{pattern}." in f".{name}."


def by_name(entries: Mapping[str, T]) -> Callable[[str, T], T]:
    """Return what finds the entry of a module (full name), else gives the value for the rest.

    An entry is a module's whole name, that of one above it, the end of it, or a pattern; looked up in this order.
    """
    patterns = [(matcher(name), value) for name, value in entries.items() if is_pattern(name)]

    def find(name: str, rest: T) -> T:
        parts = name.split(".")
        stems = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
        ends = [".".join(parts[start:]) for start in range(1, len(parts))]
        named = next((stem for stem in (*stems, *ends) if stem in entries), None)
        return entries[named] if named is not None else next((value for test, value in patterns if test(name)), rest)

    return find


def is_pattern(name: str) -> bool:
    """Return whether an entry stands for names that it does not spell out."""
    return name.startswith("re:") or "*" in name or "?" in name


def left_dense(said: Fields, means: Callable[[str], Matches], notes: list[str]) -> Matches:
    """Return the test for what a config leaves dense, by whichever list it has; `means`: the test for an entry.

    Lists cut short are read as a rule for every layer, and that is added to `notes`.
    """
    listed = _listed(said)
    patterns = [item for item in listed if not _DROPPED.fullmatch(item)]
    if len(patterns) < len(listed):
        notes.append(
            "the list of matrices left dense is cut short here; what it says of several layers is taken for all"
        )
        stems = [_LAYER.sub("*", item) for item in patterns if _LAYER.search(item)]
        patterns += sorted(
            {stem for stem in stems if stems.count(stem) > 1 and not stem.rstrip("*").endswith("layers.")}
        )
    tests = [means(pattern) for pattern in patterns]
    return lambda name: any(test(name) for test in tests)


def is_whole(said: Fields) -> bool:
    """Return whether the lists of what a config leaves dense are as they were written, not cut short."""
    return not any(map(_DROPPED.fullmatch, _listed(said)))


def _listed(said: Fields) -> list[str]:
    """Every entry that names what is left dense, whatever list it stands in."""
    listed = [item for field in _LISTS for item in said.names(field, default=())]
    return listed + [f"re:{key[2:]}" for key in said.mapping("dynamic", {}) if key.startswith("-:") and key != "-:"]
