"""`optimize calibrate`: which device, which Python, then `targets.machine.calibrate`."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from passes.errors import InputError
from passes.ir.sources import open_model
from passes.record import dataclass
from planner.setup.extras import APPLY, install
from targets.engines.engine import ENGINE_NAMES, Engine, Parallel, find_engine
from targets.gpu import Gpu, find_gpu, installed_gpu
from targets.machine.calibrate import ServedModel, calibrate_machine, calibrate_served
from targets.machine.profile import Profile, believed_profile, profile_path
from targets.serve.process import engine_python


@dataclass(frozen=True, slots=True)
class Server:
    """A running server to put a load on: its address, what it serves (a folder, or a name of the catalog), by which name, over how
    many cards.
    """

    url: str
    model: str | None
    served_name: str | None
    tp: int = 1


def calibrate(
    gpu: str | None, python: Path | None, server: Server | None, seconds: float, *, say: Callable[[str], None]
) -> Profile:
    """Measure the device; with a server, put a load on what is served there as well. The profile is stored and returned.

    `seconds`: what measuring the device may take; a device that was measured before is not measured again for a server.
    """
    card = find_gpu(gpu) if gpu else installed_gpu()
    engine = next(name for name in ENGINE_NAMES if _can_calibrate(find_engine(name), card))
    if server is not None and not server.model:
        raise InputError("what is served there?", remedy="name it with --model: a folder, or a name of the catalog")
    profile = None if server is None else believed_profile(card)[0]
    if profile is None:
        measuring = _python(python)
        say(f"measuring {card.name}, about {seconds:.0f} s")
        profile = calibrate_machine(card, measuring, seconds=seconds)
    if server is not None and server.model:
        say(f"a short load on {server.url}")
        name = server.served_name or Path(server.model).name
        served = ServedModel(open_model(server.model).ir, engine, card, Parallel(tp=server.tp))
        profile = calibrate_served(server.url, name, served)
    say(f"kept in {profile_path(card.name)}")
    return profile


def _python(given: Path | None) -> Path | None:
    """The Python that has torch: as named, else this one (None), else an engine's. Raises InputError where there is none."""
    if given is None and "TIGHTFIT_ENGINE" not in os.environ and find_spec("torch") is not None:
        return None
    try:
        return engine_python(given)
    except InputError as error:
        if given is not None or "TIGHTFIT_ENGINE" in os.environ:
            raise
        remedy = f"{install(APPLY)}, or {error.remedy}"
        raise InputError("neither torch nor an engine is here to measure with", remedy=remedy) from None


def _can_calibrate(engine: Engine, card: Gpu) -> bool:
    """Whether a load on a server of this engine can tell its constants on the card."""
    return engine.server is not None and engine.weighed_on(card)
