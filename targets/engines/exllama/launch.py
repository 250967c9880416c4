"""TabbyAPI's config.yml and a script that starts it as it is, for ExLlamaV2 and ExLlamaV3.

Keys as TabbyAPI's own `config_sample.yml` documents them (read at its commit 004e8374). The cache is allotted in tokens, in pages
of 256: what the plan counted, each concurrent request at its own length, and at least one longest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from targets.engines.exllama.engine import CHUNK, PAGE
from targets.launch.before_start import look_first
from targets.launch.request import Launch, LaunchFile, LaunchRequest

#: The config file in the launch folder.
CONFIG = "config.yml"
_PORT = 5000

_RUN = """#!/usr/bin/env bash
# Starts TabbyAPI on this result. TABBYAPI names its checkout, TIGHTFIT_ENGINE the Python that has it (default: the checkout's
# venv). PORT and HOST may be set. Extra arguments go to TabbyAPI.
set -euo pipefail
result="$(cd "$(dirname "$0")/.." && pwd)"
@LOOK@cd "${TABBYAPI:?set TABBYAPI to a checkout of TabbyAPI}"
exec "${TIGHTFIT_ENGINE:-venv/bin/python}" main.py --config "$result/launch/config.yml" \\
  --model-dir "$(dirname "$result")" --model-name "$(basename "$result")" \\
  --host "${HOST:-127.0.0.1}" --port "${PORT:-@PORT@}" "$@"
"""


def tabby_launch(request: LaunchRequest, served_by: str, cache_mode: str) -> Launch:
    """Return `config.yml` and `run.sh`. The script fills in where the result lies; the command is one of TabbyAPI's checkout.

    `served_by`: which TabbyAPI serves the engine, for people; `cache_mode`: TabbyAPI's name of the cache's type.
    """
    config = tabby_config(request, cache_mode)
    head = f"# TabbyAPI: {request.label}\n# Planned for {request.engine} {request.version}.\n# Served by {served_by}.\n"
    files = (
        LaunchFile(CONFIG, head + yaml.safe_dump(config, sort_keys=False), data=config),
        LaunchFile(
            "run.sh", _RUN.replace("@PORT@", str(_PORT)).replace("@LOOK@", look_first('"$result"')), executable=True
        ),
    )
    return Launch(files, ("python", "main.py", "--config", f"launch/{CONFIG}"), {}, _PORT, "/health")


def served_name(folder: Path) -> str:
    """Return the name in the config file of a launch folder."""
    return str(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))["model"]["model_name"])


def tabby_config(request: LaunchRequest, cache_mode: str) -> dict[str, Any]:
    """Return the configuration as TabbyAPI reads it."""
    settings, workload = request.settings, request.workload
    context, each = _pages(workload.context), _pages(workload.request_tokens)
    requests = settings.max_num_seqs or workload.concurrency or 1
    model: dict[str, Any] = {
        "model_name": request.served_name,
        "backend": request.engine,
        "max_seq_len": context,
        "cache_size": max(context, each * requests),
        "cache_mode": cache_mode,
        "chunk_size": settings.max_num_batched_tokens or CHUNK,
        "max_batch_size": requests,
    }
    if "vision_config" in request.ir.config:
        # Off by default: images would be dropped without an error.
        model["vision"] = True
    if settings.parallel.tp > 1:
        model["tensor_parallel"] = True
    if settings.parallel.tp * settings.parallel.pp > 1:
        model["gpu_split_auto"] = True
    return {"model": model}


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE) * PAGE
