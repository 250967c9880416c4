"""The contract of what drives an engine for `optimize verify`: a finished result in, what the running engine showed out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from passes.record import dataclass
from targets.quantity import Quantity
from targets.serve.load import Load, LoadTiming
from targets.serve.soak import Soaked, SoakRequest

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Installed:
    """The engine that a Python has: its version, and what it is built for (`cpu` or `cuda`); None where that is not known."""

    version: str | None = None
    build: str | None = None


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """What is to be driven. `result`: the checkpoint; `launch`: the folder of its launch files; `python`: the one that has the engine;
    `kv_tokens`: what the plan says that the cache holds; `cards`: how many the plan uses; `checkout`: of a server that is no part of
    the engine's package, where one is to be driven too; `soak`: what comes after the load, on the same start.
    """

    result: Path
    launch: Path
    python: Path
    load: Load
    kv_tokens: Quantity
    cards: int
    checkout: Path | None = None
    soak: SoakRequest | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """What the running engine showed. `kv_tokens`, `max_concurrency`: None where it does not say; `loads`: the first is held against the
    plan; `start_seconds` until it could answer; `sample`: the beginning of an answer; `version`: where only the running engine tells
    it; `notes`: what could not be driven as asked, for people; `tells_cache`: whether it is one that says what its cache holds; `soaked`:
    what a soak showed, where one was asked and can be put on.
    """

    kv_tokens: int | None
    max_concurrency: float | None
    loads: tuple[LoadTiming, ...]
    start_seconds: float
    sample: str
    version: str | None = None
    notes: tuple[str, ...] = ()
    tells_cache: bool = True
    soaked: Soaked | None = None


class Verifier(ABC):
    """Drives one engine."""

    @abstractmethod
    def python(self, given: Path | None) -> Path:
        """Return the Python that has the engine: as given, else where it usually is. Raises InputError where none is known."""

    @abstractmethod
    def installed(self, python: Path) -> Installed:
        """Say what engine a Python has, without starting it."""

    @abstractmethod
    def observe(self, request: VerifyRequest, say: Say) -> Observed:
        """Start the engine on a result, put the load on it, stop it whatever happens. Raises EngineError where it does not start."""
