"""Numbers as flags of a server are written: `8k` is 8,000, `8K` is 8,192 (vLLM's `engine/arg_utils.py:human_readable_int`)."""

from __future__ import annotations

import re

from passes.errors import InputError
from passes.ir.fields import LARGEST

_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
#: What asks for the largest context that fits.
AUTO = ("auto", "-1")


def whole_number(text: str, flag: str) -> int:
    """Return a whole number: `32768`, `32k` (32,000), `32K` (32,768), `1.5k`. Raises InputError for what is none; vLLM refuses
    `1.5K`, which is read here all the same.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)(?:i?[bB])?", text.strip().replace(",", "").replace("_", ""))
    scale = 1 if match is None else (_DECIMAL | _BINARY).get(match[2], 1)
    if match is None or not (float(match[1]) * scale).is_integer():
        raise InputError(
            f"{flag} {text!r} is no whole number", remedy="write it as 32768, 32k (32,000) or 32K (32,768)"
        )
    return int(float(match[1]) * scale)


def count(text: str, flag: str, most: int = LARGEST) -> int:
    """Return a whole number from 1 to `most`. Raises InputError for what is none; the engine stops at it."""
    value = whole_number(text, flag)
    if not 1 <= value <= most:
        raise InputError(f"{flag} {text!r} is out of range", remedy=f"write a whole number from 1 to {most:,}")
    return value


def real_number(text: str, flag: str) -> float:
    """Return a number such as `0.92`. Raises InputError for what is none."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), float("-inf")):
        raise InputError(f"{flag} {text!r} is no number", remedy="write it like 0.92")
    return value
