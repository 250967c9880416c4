"""Outside tools that make a quantization in place of the native walk: `backend: gptqmodel` in a spec's `quantize`.

A backend is a program of its own, in a Python of its own (their pins exclude each other): it gets a job file, a folder with the
dense model and the calibration tokens, and leaves a checkpoint. What it leaves is held against the same description as native
results, tensor by tensor. One module for libraries that a driver of ours calls, one for converters with a command line.
"""

from passes.backends.backend import Backend
from passes.backends.converters import ExllamaV2, ExllamaV3
from passes.backends.libraries import AutoRound, GptqModel, LlmCompressor
from passes.base import NATIVE
from passes.errors import unknown_name

BACKENDS: dict[str, Backend] = {
    one.name: one for one in (LlmCompressor(), GptqModel(), AutoRound(), ExllamaV2(), ExllamaV3())
}
NAMES = (NATIVE, *BACKENDS)


def find_backend(name: str) -> Backend:
    """A backend by its name. Raises InputError with the nearest names."""
    if name not in BACKENDS:
        raise unknown_name("backend", name, NAMES, remedy=f"one of {', '.join(NAMES)}")
    return BACKENDS[name]


__all__ = ["BACKENDS", "NAMES", "Backend", "find_backend"]
