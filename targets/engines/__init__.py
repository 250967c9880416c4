"""One file an engine: legality by version and card, memory accounting, speed."""

from __future__ import annotations

from importlib import import_module

from passes.reason import unknown_name
from targets.engines.engine import Engine

#: Engines by name: module and class, imported when asked for.
_ENGINES = {
    "vllm": ("targets.engines.vllm", "Vllm"),
    "vllm-cpu": ("targets.engines.vllm_cpu", "VllmCpu"),
    "exllamav2": ("targets.engines.exllamav2", "ExllamaV2"),
    "exllamav3": ("targets.engines.exllamav3", "ExllamaV3"),
}

ENGINE_NAMES = tuple(_ENGINES)


def find_engine(name: str) -> Engine:
    """The engine of that name. Raises InputError with the nearest names."""
    if name not in _ENGINES:
        raise unknown_name("engine", name, ENGINE_NAMES, remedy=f"engines: {', '.join(ENGINE_NAMES)}")
    module, cls = _ENGINES[name]
    engine: Engine = getattr(import_module(module), cls)()
    return engine
