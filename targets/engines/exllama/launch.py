"""TabbyAPI's config.yml and a script that starts it as it is, for ExLlamaV2 and ExLlamaV3.

Keys as TabbyAPI's own `config_sample.yml` documents them (read at its commit 004e8374). The cache is allotted in tokens, in pages
of 256; one context a concurrent request is what the plan counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from passes.ir.model import ModelIR
from targets.engines.engine import LaunchFile

#: ExLlama's cache page in tokens.
PAGE = 256
#: Prompt tokens processed at once, where the plan does not set them: TabbyAPI's default.
CHUNK = 2048

#: Which TabbyAPI serves an engine (its README and `backends/exllamav2/version.py`; EXL2 left its main branch).
_SERVED_BY = {
    "exllamav2": "TabbyAPI's branch exl2-checkpoint (main has dropped ExLlamaV2), with exllamav2 0.2.8 to 0.3.2, its last",
    "exllamav3": "TabbyAPI's branch main, with exllamav3 0.0.7 or newer",
}

_RUN = """#!/usr/bin/env bash
# Starts TabbyAPI on this result. TABBYAPI names its checkout, TIGHTFIT_ENGINE the Python that has it (default: the checkout's
# venv). PORT and HOST may be set. Extra arguments go to TabbyAPI.
set -euo pipefail
result="$(cd "$(dirname "$0")/.." && pwd)"
cd "${TABBYAPI:?set TABBYAPI to a checkout of TabbyAPI}"
exec "${TIGHTFIT_ENGINE:-venv/bin/python}" main.py --config "$result/launch/config.yml" \\
  --model-dir "$(dirname "$result")" --model-name "$(basename "$result")" \\
  --host "${HOST:-127.0.0.1}" --port "${PORT:-5000}" "$@"
"""


def tabby_files(plan: Mapping[str, Any], ir: ModelIR, served_name: str) -> tuple[LaunchFile, ...]:
    """`config.yml` and `run.sh`. The script fills in where the result lies."""
    config = tabby_config(plan, ir, served_name)
    engine = plan["chosen"]["engine"]
    head = (
        f"# TabbyAPI: {plan['chosen']['label']}\n# Planned for {engine['name']} {engine['version']}.\n"
        f"# Served by {_SERVED_BY[engine['name']]}.\n"
    )
    return (
        LaunchFile("config.yml", head + yaml.safe_dump(config, sort_keys=False), data=config),
        LaunchFile("run.sh", _RUN, executable=True),
    )


def tabby_config(plan: Mapping[str, Any], ir: ModelIR, served_name: str) -> dict[str, Any]:
    """The configuration as TabbyAPI reads it."""
    chosen, workload = plan["chosen"], plan["spec"]["workload"]
    settings, name = chosen["settings"], chosen["engine"]["name"]
    requests = workload["concurrency"] or 1
    model: dict[str, Any] = {
        "model_name": served_name,
        "backend": name,
        "max_seq_len": _pages(workload["context"]),
        "cache_size": _pages(workload["context"]) * requests,
        "cache_mode": cache_mode(name, ir.kv_cache.dtype),
        "chunk_size": settings.get("max_num_batched_tokens", CHUNK),
        "max_batch_size": requests,
    }
    if settings["tensor_parallel"] > 1:
        model["tensor_parallel"] = True
    if settings["tensor_parallel"] * settings["pipeline_parallel"] > 1:
        model["gpu_split_auto"] = True
    return {"model": model}


def cache_mode(engine: str, dtype: str) -> str:
    """How TabbyAPI names a cache type: FP16, or Q and the bits; ExLlamaV3 takes a pair of bits for keys and values."""
    if dtype == "auto":
        return "FP16"
    bits = dtype.removeprefix("q")
    return f"{bits},{bits}" if engine == "exllamav3" else f"Q{bits}"


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE) * PAGE
