"""Matches names of modules as the lists of a `quantization_config` write them: plain, with `*`, or `re:`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from typing import Any

#: Says whether a module (full name) is meant.
Matches = Callable[[str], bool]

_DROPPED = re.compile(r"\.\.\.\d+ more entries dropped")
_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")


def matcher(pattern: str) -> Matches:
    """Return the test for one entry of a list; a plain name means what stands below it too."""
    if pattern.startswith("re:"):
        compiled = re.compile(pattern[3:])
        return lambda name: compiled.match(name) is not None
    if "*" in pattern or "?" in pattern:
        wild = re.compile(fnmatch.translate(pattern) + "|" + fnmatch.translate(pattern + ".*"))
        return lambda name: wild.match(name) is not None
    return lambda name: name == pattern or name.startswith(pattern + ".") or f".{pattern}." in f".{name}."


def left_dense(settings: Mapping[str, Any], notes: list[str]) -> Matches:
    """Return the test for what a config leaves dense, by whichever list it has.

    Lists cut short are read as a rule for every layer, and that is added to `notes`.
    """
    listed = _listed(settings)
    patterns = [item for item in listed if not _DROPPED.fullmatch(item)]
    if len(patterns) < len(listed):
        notes.append(
            "the list of matrices left dense is cut short here; what it says of several layers is taken for all"
        )
        stems = [_LAYER.sub("*", item) for item in patterns if _LAYER.search(item)]
        patterns += sorted(
            {stem for stem in stems if stems.count(stem) > 1 and not stem.rstrip("*").endswith("layers.")}
        )
    tests = [matcher(pattern) for pattern in patterns]
    return lambda name: any(test(name) for test in tests)


def is_whole(settings: Mapping[str, Any]) -> bool:
    """Return whether the lists of what a config leaves dense are as they were written, not cut short."""
    return not any(map(_DROPPED.fullmatch, _listed(settings)))


def _listed(settings: Mapping[str, Any]) -> list[str]:
    listed: list[str] = []
    for field in ("ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers", "llm_int8_skip_modules"):
        listed += [str(item) for item in settings.get(field) or ()]
    return listed + [key[2:] and f"re:{key[2:]}" for key in settings.get("dynamic") or () if str(key).startswith("-:")]
