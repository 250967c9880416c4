"""Tries hostile inputs and keeps what came of them."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from benchmarks.hostile_inputs.surfaces import ROOT, SURFACES
from passes.errors import TightfitError

#: Seconds of the processor, so that what else runs on the machine does not count.
_CUT_S = 20.0
#: Of each hundred inputs; the first two are what people write and publish most.
_SHARES = dict.fromkeys(SURFACES, 4) | {
    "spec": 25,
    "config": 25,
    "quantization": 10,
    "header": 8,
    "gguf": 8,
    "option": 8,
}


class TookTooLongError(BaseException):
    """An input was cut off."""


@dataclass
class Report:
    """What came of a run."""

    inputs: Counter[str] = field(default_factory=Counter)
    defects: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    slowest: list[tuple[float, str, str]] = field(default_factory=list)

    @property
    def peak_bytes(self) -> int:
        """The most memory that this process ever held."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def attempt(surface: str, seed: int, folder: Path) -> str | None:
    """Try one input of a surface; what went wrong, None where it was answered or refused."""
    place = folder / surface
    place.mkdir(exist_ok=True)
    call, _ = SURFACES[surface](Random(seed), place)
    try:
        call()
    except TightfitError as error:
        return None if error.message else "an error without a message"
    except (Exception, TookTooLongError) as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        last = traceback.extract_tb(error.__traceback__)
        ours = next(
            (frame for frame in reversed(last) if str(ROOT) in frame.filename and "benchmarks" not in frame.filename),
            last[-1],
        )
        return f"{type(error).__name__}: {str(error)[:70]!r} at {Path(ours.filename).name}:{ours.lineno}"
    return None


def run(seed: int, count: int, folder: Path) -> Report:
    """Try `count` inputs."""
    report, rng = Report(), Random(seed)
    kinds = rng.choices(list(_SHARES), list(_SHARES.values()), k=count)
    for kind in kinds:
        each, began = rng.randrange(2**40), time.process_time()
        report.inputs[kind] += 1
        with _cut_off():
            problem = attempt(kind, each, folder)
        took = time.process_time() - began
        if problem is not None:
            key = f"{kind}: {problem}"
            report.defects[key] += 1
            report.examples.setdefault(key, f"seed {each}: {SURFACES[kind](Random(each), folder / kind)[1][:400]}")
        report.slowest = sorted([*report.slowest, (took, kind, str(each))], reverse=True)[:5]
    return report


@contextlib.contextmanager
def _cut_off() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TookTooLongError(f"took over {_CUT_S:.0f} s")

    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, _CUT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
