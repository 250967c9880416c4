"""Where the tools of others are: named by `--tool NAME=PATH`, else in this Python, else where `make engine` and `make backends` put them.

PATH is a Python, or a folder of packages that this Python is given.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.on_card.staging import NotHereError, Setup
from passes.errors import InputError
from targets.serve.process import engine_python

_BACKENDS = Path(os.environ.get("TIGHTFIT_BACKENDS") or Path.home() / ".cache" / "tightfit" / "backends")
#: Modules by tool, and the Python that the Makefile makes for it.
_MODULES = {"vllm": "vllm", "llmcompressor": "llmcompressor", "gptqmodel": "gptqmodel", "exllamav2": "exllamav2"}
_MADE = {
    "llmcompressor": _BACKENDS / "tools" / "bin" / "python", "gptqmodel": _BACKENDS / "gptqmodel" / "bin" / "python",
    "exllamav2": _BACKENDS / "tools" / "bin" / "python",
}  # fmt: skip
#: Asked of a Python without loading the tool. The CPU build of vLLM is a distribution of its own.
_ASK = """
import importlib.util, importlib.metadata as m, sys
if importlib.util.find_spec(sys.argv[1]) is None: sys.exit(1)
found = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in m.distributions()}
print(found.get(sys.argv[1]) or found.get(sys.argv[1] + "-cpu") or "unknown")
"""


@dataclass(frozen=True)
class Tool:
    """A tool that is there: the Python to call, its environment, its version."""

    python: Path
    environment: dict[str, str]
    version: str


def find_tool(setup: Setup, name: str) -> Tool:
    """The tool of a name. Raises NotHereError with where it was looked for."""
    tried = []
    for python, folder in _places(setup, name):
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if folder is not None:
            environment["PYTHONPATH"] = str(folder)
        if not python.exists():
            tried.append(str(folder or python))
            continue
        asked = subprocess.run(
            [str(python), "-c", _ASK, _MODULES[name]], capture_output=True, text=True, env=environment, check=False
        )
        if asked.returncode == 0:
            return Tool(python, environment, asked.stdout.strip())
        tried.append(str(folder or python))
    raise NotHereError(f"{name} is not there (looked in {', '.join(tried)}; --tool {name}=PATH names it)")


def _places(setup: Setup, name: str) -> list[tuple[Path, Path | None]]:
    """Pythons with the folder each is given."""
    here = Path(sys.executable)
    if name in setup.tools:
        path = Path(setup.tools[name]).expanduser().absolute()
        return [(here, path) if path.is_dir() else (path, None)]
    made = [(_MADE[name], None)] if name in _MADE else []
    if name == "vllm":
        try:
            made = [(engine_python(), None)]
        except InputError:
            made = []
    return [(here, None), *made]
