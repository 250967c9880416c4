"""Quantities as people write them: `24 GiB`, `500 ms`, `20 tok/s`, `10%`. Strictly: GB and GiB are different, Gb is refused."""

from __future__ import annotations

import math
import re

_BYTES = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
    "TiB": 1 << 40,
}  # fmt: skip
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}
_ARRIVALS = {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600, "req/s": 1.0}
_RATES = {"tok/s": 1.0, "tokens/s": 1.0, "t/s": 1.0, "tok/min": 1 / 60}
_TOKENS = {"k": 1 << 10, "m": 1 << 20}
#: No amount of anything comes near: 10^18 bytes, seconds or tokens a second.
_FAR = 1e18


def _parse(text: object, units: dict[str, float], kind: str, example: str) -> float:
    if isinstance(text, dict | list):
        raise ValueError(
            f"should be {kind}, such as {example}, and is a {'list' if isinstance(text, list) else 'mapping'}"
        )
    if isinstance(text, bool) or not isinstance(text, str):
        shown = f"{text!r}" if text is not None else "nothing"
        raise ValueError(f"{shown} has no unit: write {kind} with one, such as {example}")
    match = re.fullmatch(r"\s*([-+]?\d+(?:[_,]\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?)\s*([a-zA-Zµ%/]*)\s*", text)
    if not match or match[2] not in units:
        known = f"one of {', '.join(units)}" if len(units) > 1 else next(iter(units))
        raise ValueError(f"{text!r} is not {kind}: write a number and {known}, such as {example}")
    value = float(re.sub(r"[_,]", "", match[1])) * units[match[2]]
    if not abs(value) <= _FAR:
        raise ValueError(f"{text!r:.60} is more than anything here is: write {kind}, such as {example}")
    return value


def with_unit(text: str, unit: str) -> str:
    """Return a figure of the command line with the unit that a bare number lacks."""
    return f"{text}{unit}" if text.replace(".", "", 1).isdigit() else text


def parse_bytes(text: object) -> int:
    """Read `0.5 GiB` as bytes. Raises ValueError saying what was expected."""
    return int(_positive(_parse(text, dict(_BYTES), "an amount of memory", "24 GiB"), text))


def parse_seconds(text: object) -> float:
    """Read `500 ms` as seconds. Raises ValueError saying what was expected."""
    return _positive(_parse(text, dict(_SECONDS), "a time", "500 ms"), text)


def parse_rate(text: object) -> float:
    """Read `20 tok/s` as tokens a second. Raises ValueError saying what was expected."""
    return _positive(_parse(text, dict(_RATES), "a rate", "20 tok/s"), text)


def as_typed_tokens(said: object) -> object:
    """Return `32k` as the 32,768 tokens that it means, `1m` as 1,048,576; anything else as it is."""
    match = re.fullmatch(r"\s*(\d+)\s*([kKmM])\s*", said) if isinstance(said, str) else None
    return int(match[1]) * _TOKENS[match[2].lower()] if match else said


def parse_tokens(said: object) -> object:
    """Read a text such as `32k` as tokens; what is no text is judged elsewhere. Raises ValueError saying what was expected."""
    tokens = as_typed_tokens(said)
    if isinstance(tokens, str):
        plain = f"{tokens.strip()} without quotes" if tokens.strip().isdigit() else "32768"
        raise ValueError(f"{tokens!r:.60} is no number of tokens: write {plain:.60}, 32k (32,768) or 1m (1,048,576)")
    return tokens


def parse_arrivals(text: object) -> float:
    """Read `4/s` as requests a second; `inf` where all come at once. Raises ValueError saying what was expected."""
    if text in ("inf", math.inf):
        return math.inf
    rate = _parse(text, dict(_ARRIVALS), "a rate of requests", "4/s, or inf")
    if rate <= 0:
        raise ValueError(f"{text!r} is no rate of requests: write a positive one, such as 4/s, or inf")
    return rate


def format_arrivals(rate: float) -> str:
    """Write 4.0 as `4.0/s`; reads back as the same number."""
    return "inf" if math.isinf(rate) else f"{rate}/s"


def parse_share(text: object) -> float:
    """Read the share `10%` as 0.1. Raises ValueError saying what was expected."""
    return _positive(round(_parse(text, {"%": 0.01}, "a share", "10%"), 12), text)


def format_share(share: float) -> str:
    """Write 0.1 as `10%`; reads back as the same number."""
    return f"{round(share * 100, 10):g}%"


def _positive(value: float, text: object) -> float:
    if value < 0:
        raise ValueError(f"{text!r} is negative: write a positive amount")
    return value
