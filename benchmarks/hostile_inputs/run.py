"""Tries hostile inputs and says what came of each."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.hostile_inputs.surfaces import ROOT
from benchmarks.hostile_inputs.table import SURFACES
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


@dataclass(frozen=True)
class Trial:
    """What came of one input: the `number`-th of a run, made by `SURFACES[surface]` of `Random(seed)`."""

    number: int
    surface: str
    seed: int
    took_s: float
    problem: str | None

    def shown(self, folder: Path) -> str:
        """The input itself, shortened."""
        return SURFACES[self.surface](Random(self.seed), folder / self.surface)[1][:400]


def peak_bytes() -> int:
    """Return the most memory that this process ever held."""
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


def trials(seed: int, numbers: range, folder: Path) -> Iterator[Trial]:
    """Try the inputs of a run with these numbers. Each follows from the run's seed and its number alone, so a run may go on anywhere."""
    for number in numbers:
        rng = Random(f"{seed} {number}")
        surface, each = rng.choices(list(_SHARES), list(_SHARES.values()))[0], rng.randrange(2**40)
        began = time.process_time()
        with _cut_off():
            problem = attempt(surface, each, folder)
        yield Trial(number, surface, each, time.process_time() - began, problem)


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
