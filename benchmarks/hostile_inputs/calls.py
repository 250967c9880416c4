"""Calls of the Python facade with values of other types and ranges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import tightfit
from benchmarks.hostile_inputs.mutate import JUNK
from benchmarks.hostile_inputs.surfaces import NAMES

_CHECK: dict[str, Any] = {
    "model": "Qwen/Qwen2.5-1.5B-Instruct", "gpu": "L4", "engine": "vllm", "context": 4096, "concurrency": 2, "input_tokens": 100,
    "output_tokens": 20, "weights": "w4a16-g128", "kv_cache_dtype": "auto", "dtype": "auto", "settings": None, "load": None,
}  # fmt: skip
_SETTINGS: dict[str, Any] = {
    "version": "0.26.0", "parallel": None, "gpu_memory_utilization": 0.9, "max_num_seqs": 8, "max_num_batched_tokens": 2048, "enforce_eager": False,
    "block_size": 16, "kv_cache_memory_bytes": 1 << 30, "reserve_bytes": 0, "dtype": "auto", "features": None,
}  # fmt: skip
_PARALLEL: dict[str, Any] = {"tp": 1, "pp": 1, "dp": 1, "ep": 1}
_OTHERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plan", {"spec": {"model": "x", "target": {"gpu": "L4"}}, "measure": None, "progress": None, "on": None}),
    ("apply", {"what": "no.plan.json", "out": None, "work": None, "replace": False, "progress": None, "on": None}),
    ("verify", {"out": "nowhere", "engine": None, "load": None, "checkout": None, "say": None}),
    ("load_plan", {"what": "no.plan.json"}),
    ("load_spec", {"what": "no.yaml"}),
    ("UnderLoad", {"rate": 1.0, "seconds": 10.0, "soak": False}),
    ("Computing", {"device": "cpu"}),
    ("Goals", {"ttft": "2 s", "decode": "20 tok/s", "prefer": "quality"}),
    ("WorkloadSpec", {"context": 8192, "concurrency": 2}),
    ("Target", {"gpu": "L4", "count": 1, "reserve": "1 GiB"}),
    ("PassesChoice", {"prune": "allow", "kv_cache": ["auto"]}),
    ("Spec", {"model": "x", "target": {"gpu": "L4"}, "workload": {"context": 8192}}),
)  # fmt: skip


def calls(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    """A function of the facade, one or two of its arguments not of their kind."""
    if rng.random() < 0.6:
        asked = {
            key: value
            for key, value in _CHECK.items()
            if value is not None and (key in ("model", "gpu") or rng.random() < 0.5)
        }
        settings = _odd(rng, _SETTINGS) if rng.random() < 0.6 else {}
        parallel = _odd(rng, _PARALLEL) if rng.random() < 0.3 else {}
        if not settings and not parallel:
            asked = _odd(rng, _CHECK, asked)

        def run() -> object:
            inside = {"parallel": tightfit.Parallel(**parallel)} if parallel else {}
            with_settings = {"settings": tightfit.Settings(**settings | inside)} if settings or inside else {}
            return tightfit.check(**asked | with_settings).as_json()

        return run, f"check {asked} {settings} {parallel}"
    name, good = rng.choice(_OTHERS)
    given = _odd(rng, good, {key: value for key, value in good.items() if value is not None})
    call = getattr(tightfit, name)
    return lambda: call(**given), f"{name} {given}"


def _odd(rng: Random, known: dict[str, Any], given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of which one or two are something else."""
    junk = (*JUNK, object(), b"x", 1 + 2j, range(3), Path("x"), print, Exception, ..., *NAMES)
    odd = {key: rng.choice(junk) for key in rng.sample(sorted(known), min(len(known), rng.choice([1, 1, 2])))}
    return (given or {}) | odd
