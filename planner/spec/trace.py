"""Reads a trace: requests as they came, one JSON object a line."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.errors import InputError, Location
from passes.ir.fields import file_bytes

#: Requests of a trace at most.
MOST = 100_000
_SHAPE = '{"time": 0.5, "input": 812, "output": 95}'


@lru_cache(maxsize=8)
def read_trace(path: str) -> tuple[tuple[float, int, int], ...]:
    """Return (second, prompt tokens, answer tokens) of each request, in the order of their times, the first at 0.

    Raises InputError that names the file and line of what is no request.
    """
    try:
        lines = file_bytes(Path(path), pipes=True).decode().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the trace {path}: {error}", remedy=f"name a file with lines such as {_SHAPE}"
        ) from None
    requests = [_request(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not 0 < len(requests) <= MOST:
        raise InputError(f"the trace {path} has {len(requests):,} requests", remedy=f"name one with 1 to {MOST:,}")
    requests.sort()
    began = requests[0][0]
    return tuple((at - began, prompt, answer) for at, prompt, answer in requests)


def _request(line: str, path: str, number: int) -> tuple[float, int, int]:
    try:
        said: Any = json.loads(line)
        at, prompt, answer = (said[key] for key in ("time", "input", "output"))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            "this line is no request", remedy=f"write {_SHAPE}", location=Location(path, number, 1)
        ) from None
    numbers = type(at) in (int, float) and abs(at) < 1e12 and type(prompt) is int and type(answer) is int
    if not numbers or not (0 < prompt < 1 << 31 and 0 < answer < 1 << 31):
        message = "a request has a time in seconds, and whole numbers of tokens above 0"
        raise InputError(message, remedy=f"write {_SHAPE}", location=Location(path, number, 1))
    return float(at), prompt, answer
