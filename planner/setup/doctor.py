"""What this machine can do: Python, torch, cards, memory, disk, engines and outside tools, and which commands follow from them."""

from __future__ import annotations

import json
import os
import platform
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from passes.backends.run import backend_python
from passes.backends.run import version as tool_version
from passes.chain import BACKENDS, find_backend
from passes.errors import InputError
from passes.host_memory import CardMemory, card_names, cards_memory, memory_available_bytes, memory_total_bytes
from passes.ir.readers.paths import home_folder, path_named
from passes.record import dataclass
from planner.plan.codec import FORMAT_VERSION, to_json
from planner.setup.extras import APPLY, extras, install, installed
from planner.version import VERSION
from targets.engines.engine import ENGINE_NAMES, find_engine
from targets.machine.devices import cores, cpu_model
from targets.serve.engine_build import ask_python

_TORCH = """
import json, torch
cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "cards": cards}))
"""


@dataclass(frozen=True, slots=True)
class Torch:
    """torch here: its version, the CUDA it is built for, the cards that it can use. `version` None: it is not installed, or not loaded."""

    version: str | None = None
    cuda: str | None = None
    cards: int = 0


@dataclass(frozen=True, slots=True)
class Package:
    """A package that an extra asks for; `version` None: it is not here."""

    name: str
    version: str | None


@dataclass(frozen=True, slots=True)
class Tool:
    """An engine or an outside tool: its version and the Python that has it, or how to get it."""

    name: str
    version: str | None
    build: str | None
    python: str | None
    remedy: str | None


@dataclass(frozen=True, slots=True)
class Command:
    """Commands that work or not alike; `needs`: what is missing, `remedy`: what brings it."""

    names: str
    works: bool
    needs: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found. Memory and disk in bytes; `memory_available_bytes` None: not known."""

    format_version: str
    tightfit: str
    python: str
    executable: str
    system: str
    processor: str
    cores: int
    memory_bytes: int
    memory_available_bytes: int | None
    disk_free_bytes: int
    hub_folder: str
    hub_free_bytes: int
    cards: tuple[CardMemory, ...]
    torch: Torch
    packages: tuple[Package, ...]
    engines: tuple[Tool, ...]
    tools: tuple[Tool, ...]
    commands: tuple[Command, ...]

    def as_json(self) -> dict[str, Any]:
        """Return it as a document."""
        document: dict[str, Any] = to_json(self)
        return document


def examine(folder: Path) -> Machine:
    """Look at this machine; `folder` is where results are going to lie. Nothing is changed, nothing downloaded."""
    cards, packages = cards_memory(), tuple(Package(name, installed(name)) for name in extras().get(APPLY, ()))
    with ThreadPoolExecutor() as at_once:  # each waits for other Pythons to answer
        loading = at_once.submit(_torch, loaded=bool(cards))
        looking = at_once.map(_engine, ENGINE_NAMES), at_once.map(_tool, BACKENDS.names())
        torch, engines, tools = loading.result(), *map(tuple, looking)
    named = os.environ.get("HF_HOME")
    hub = path_named(named) if named else home_folder() / ".cache" / "huggingface"
    return Machine(
        format_version=FORMAT_VERSION,
        tightfit=VERSION,
        python=platform.python_version(),
        executable=sys.executable,
        system=platform.platform(),
        processor=cpu_model(),
        cores=cores(),
        memory_bytes=memory_total_bytes(),
        memory_available_bytes=memory_available_bytes() if find_spec("psutil") else None,
        disk_free_bytes=_free_bytes(folder),
        hub_folder=str(hub),
        hub_free_bytes=_free_bytes(hub),
        cards=cards,
        torch=torch,
        packages=packages,
        engines=engines,
        tools=tools,
        commands=tuple(_commands(torch, packages, engines)),
    )


def _torch(*, loaded: bool) -> Torch:
    """What torch says of itself in its folder; which cards it can use it says only `loaded`, in a process of its own: that takes seconds,
    and where it cannot be nothing else is harmed.
    """
    found = find_spec("torch")
    if found is None or found.origin is None:
        return Torch()
    told = Path(found.origin).with_name("version.py")
    if not loaded and told.is_file():
        version = runpy.run_path(str(told))
        return Torch(version.get("__version__"), version.get("cuda"))
    said = ask_python(Path(sys.executable), _TORCH, isolated=False)
    return Torch(**json.loads(said)) if said else Torch()


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(next(filter(_is_there, (folder, *folder.absolute().parents)))).free


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # its name is longer than any
        return False


def _engine(name: str) -> Tool:
    verifier = find_engine(name).verifier()
    if verifier is None:
        return Tool(name, None, None, None, "start it by hand: nothing here drives it")

    def look() -> Tool:
        python = verifier.python(None)
        found = verifier.installed(python)
        if found.version is None:
            raise InputError("", remedy=f"{python} has none: name the Python that has it with TIGHTFIT_ENGINE")
        wanted = find_engine(name).device
        if found.build not in (None, wanted):
            raise InputError("", remedy=f"{python} has the build for {found.build}; this one is for {wanted}")
        return Tool(name, found.version, found.build, str(python), None)

    return _found(name, look)


def _tool(name: str) -> Tool:
    def look() -> Tool:
        backend = find_backend(name)
        python = backend_python(backend)
        return Tool(name, tool_version(backend, python), None, str(python), None)

    return _found(name, look)


def _found(name: str, look: Callable[[], Tool]) -> Tool:
    try:
        return look()
    except InputError as error:
        return Tool(name, None, None, None, error.remedy)


def _commands(torch: Torch, packages: tuple[Package, ...], engines: tuple[Tool, ...]) -> Iterator[Command]:
    yield Command(
        "plan, check, explain, report, serve-ui, show, diff, drift, launch, init, targets, models, schema", True
    )
    lacking = [package.name for package in packages if package.version is None]
    if lacking or torch.version is None:
        needs = f"without {', '.join(lacking)}" if lacking else "torch does not load"
        yield Command("apply, plan --measure", False, needs, install(APPLY))
    elif card_names() and not torch.cards:
        needs = "on the processor alone: torch cannot use the cards"
        yield Command("apply, plan --measure", True, needs, "install a build of torch for the driver's CUDA")
    else:
        yield Command("apply, plan --measure", True)
    found = [engine for engine in engines if engine.version is not None]
    if found:
        said = ", ".join(f"{engine.name} {engine.version}" for engine in found)
        yield Command("verify", True, f"with {said}")
    else:
        remedy = "name the Python that has one: TIGHTFIT_ENGINE=/path/to/bin/python"
        yield Command("verify", False, "no engine was found", remedy)
    if torch.version is not None or found:
        yield Command("calibrate", True)
    else:
        yield Command("calibrate", False, "neither torch nor an engine is here", install(APPLY))
