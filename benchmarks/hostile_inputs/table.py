"""Every surface by its name."""

from __future__ import annotations

from benchmarks.hostile_inputs import calls, documents, folders, pasted, surfaces
from benchmarks.hostile_inputs.surfaces import Surface

SURFACES: dict[str, Surface] = {
    "spec": surfaces.specs, "config": surfaces.configs, "quantization": surfaces.quantizations, "header": surfaces.headers,
    "index": surfaces.indexes, "gguf": surfaces.ggufs, "plan": surfaces.plans, "certificate": surfaces.certificates,
    "profile": surfaces.profiles, "option": surfaces.options, "question": surfaces.questions, "name": surfaces.names,
    "command": documents.commanded, "result": documents.results, "trace": documents.traces, "pasted": pasted.pasted,
    "folder": folders.folders, "tokenizer": folders.tokenizers, "calibration": folders.calibrations,
    "environment": folders.environments, "call": calls.calls,
}  # fmt: skip
