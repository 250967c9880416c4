"""Makes bad input of good: JSON values, JSON texts and YAML with parts removed, replaced, doubled or put elsewhere."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

_JUNK_YAML = (
    "", "null", "-1", "0", "1e309", "9" * 40, "9" * 5000, "[]", "{}", "true", "NaN", ".nan", ".inf", "'", '"', "\x00", "\\0", '"\\0"', '"\\ud800"',
    "é", "1..0", "0..99", "-5%", "1 parsec", "~", "!!python/object:os.system x", "!!int ''", "!!bool x", "!!float x", "!!binary x", "!x y",
    "&a [*a]", "*a", "<<: *x", "\t", "2026-11-27", "2026-13-45", "0x10", "0x", "1_000", "on", "{a: b}", "[1, 2]", "? [a]", "[" * 400, "∞",
    "50 ms ms", "1e-400 s", "1e400 B", "10 GiB GiB", "1e300 tok/s", "12:30:45", "=", "2147483648", "-.5", "0.0000001",
)  # fmt: skip
JUNK: tuple[Any, ...] = (
    None, 0, -1, 1, 3, 7, 1.5, "x", "", [], {}, True, False, 10**9, 2**31, 2**63, 10**400, [1, 2], {"a": 1}, [None], ["x"], [[]], [{}], {"": {}},
    "float99", float("nan"), float("inf"), 1e308, -0.5, "\x00", "\ud800", "1e9", "x" * 5000, [0] * 2000, {"x": [1, {"y": None}]},
)  # fmt: skip


def mutated(rng: Random, good: Any, times: int = 2) -> Any:
    """A JSON value with one or more of its parts removed, replaced, doubled or put elsewhere."""
    value = copy.deepcopy(good)
    for _ in range(rng.randint(1, times)):
        here = value
        while rng.random() < 0.6:
            inside = [
                part
                for part in (here.values() if isinstance(here, dict) else here)
                if isinstance(part, dict | list) and part
            ]
            if not inside:
                break
            here = rng.choice(inside)
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            continue
        key, how = rng.choice(keys), rng.random()
        if how < 0.15:
            del here[key]
        elif how < 0.25 and isinstance(here, dict):
            here[rng.choice(["", "x", "\x00", str(key) + " "])] = here[key]
        elif how < 0.4:
            here[key] = rng.choice([[here[key]], {"x": here[key]}, str(here[key])])
        elif how < 0.5:
            here[key] = copy.deepcopy(here[rng.choice(keys)])
        else:
            here[key] = copy.deepcopy(rng.choice(JUNK))
    return value


def broken(rng: Random, text: str) -> str:
    """A JSON text that mostly is none any more."""
    how, at = rng.random(), rng.randrange(len(text) + 1)
    if how < 0.3:
        return text[:at]
    if how < 0.5:
        return text[:at] + rng.choice(['"', "{", "}", ",", "\x00", "NaN", "\\u", "9" * 5000]) + text[at:]
    return rng.choice(
        ["", "null", "3", "[]", '"x"', "[" * 100_000, '{"a":' * 5000, "\ufeff" + text, "9" * 10_000, text + text]
    )


def written(rng: Random, value: Any) -> bytes:
    """A JSON value as a file holds it, seldom whole."""
    text = json.dumps(value)
    raw = (broken(rng, text) if rng.random() < 0.1 else text).encode("utf-8", "surrogatepass")
    return raw if rng.random() > 0.03 else raw.replace(b'"', b"\xff", 1)


def spec_text(rng: Random, text: str) -> str:
    """A spec with some of its lines, values and characters changed."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        how, lines = rng.random(), text.split("\n")
        line = rng.randrange(len(lines))
        if how < 0.35 and ":" in lines[line]:
            parts = lines[line].split(":")
            part = rng.randrange(1, len(parts))
            ends = ("," if "," in parts[part] else "") + (" }" if parts[part].rstrip().endswith("}") else "")
            parts[part] = f" {rng.choice(_JUNK_YAML)}{ends}"
            lines[line] = ":".join(parts)
            text = "\n".join(lines)
        elif how < 0.6:
            lines[line : line + 1] = rng.choice([[], [lines[line]] * 2, [rng.choice(lines), lines[line]]])
            text = "\n".join(lines)
        else:
            start = rng.randrange(max(1, len(text)))
            junk = rng.choice([rng.choice(_JUNK_YAML), "", chr(rng.randrange(1, 0x2FFF))])
            text = text[:start] + junk + text[start + rng.choice([0, 1, rng.randrange(12)]) :]
    return text
