"""TabbyAPI's config.yml and a script that starts it as it is, for ExLlamaV2 and ExLlamaV3.

Keys as TabbyAPI's own `config_sample.yml` documents them (read at its commit 004e8374). The cache is allotted in tokens, in pages
of 256: what the plan counted, each concurrent request at its own length, and at least one longest.
"""

from __future__ import annotations

import shlex
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from targets.engines.exllama.engine import CHUNK, PAGE
from targets.engines.exllama.program import program
from targets.launch.before_start import look_first
from targets.launch.commented import Said, commented, plain
from targets.launch.request import Launch, LaunchFile, LaunchRequest

#: The config file in the launch folder.
CONFIG = "config.yml"
_PORT = 5000

_RUN = """#!/usr/bin/env bash
# Starts TabbyAPI on this result. TABBYAPI names its checkout, TIGHTFIT_ENGINE the Python that has it (default: the checkout's
# venv). PORT and HOST may be set. Extra arguments go to TabbyAPI.
set -euo pipefail
result="$(cd "$(dirname "$0")/.." && pwd)"
model=@MODEL@
@LOOK@cd "${TABBYAPI:?set TABBYAPI to a checkout of TabbyAPI}"
exec "${TIGHTFIT_ENGINE:-venv/bin/python}" main.py --config "$result/launch/config.yml" \\
  --model-dir "$(dirname "$model")" --model-name "$(basename "$model")" \\
  --host "${HOST:-127.0.0.1}" --port "${PORT:-@PORT@}" "$@"
"""


def tabby_launch(request: LaunchRequest, served_by: str, cache_mode: str) -> Launch:
    """Return `config.yml` and `run.sh`. The script fills in where the result lies; the command is one of TabbyAPI's checkout.

    `served_by`: which TabbyAPI serves the engine, for people; `cache_mode`: TabbyAPI's name of the cache's type.
    """
    config = tabby_config(request, cache_mode)
    head = f"TabbyAPI: {request.label}\nPlanned for {request.engine} {request.version}.\nServed by {served_by}."
    look = look_first('"$result"') if request.served is None else ""  # `check` reads no command of TabbyAPI's
    said = {"@PORT@": str(_PORT), "@MODEL@": _place(request), "@LOOK@": look}
    script = reduce(lambda text, name: text.replace(name, said[name]), said, _RUN)
    files = (
        LaunchFile(CONFIG, commented(config, head), data=plain(config)),
        LaunchFile("run.sh", script, executable=True),
    )
    command = ("python", "main.py", "--config", f"launch/{CONFIG}")
    return Launch(files, command, {}, _PORT, "/health", program=program(request, plain(config["model"])))


def served_name(folder: Path) -> str:
    """Return the name in the config file of a launch folder."""
    return str(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))["model"]["model_name"])


def _place(request: LaunchRequest) -> str:
    """Where the checkpoint lies, for the script: the folder that holds the launch folder, or one of its own."""
    if request.served is None:
        return '"$result"'
    if request.served.folder is None:
        return f'"${{MODEL:?set MODEL to a folder with {request.served.name}}}"'
    return shlex.quote(str(request.served.folder))


def tabby_config(request: LaunchRequest, cache_mode: str) -> dict[str, Any]:
    """Return the configuration as TabbyAPI reads it, each value with why it is so."""
    settings, workload = request.settings, request.workload
    context, each = _pages(workload.context), _pages(workload.request_tokens)
    requests = settings.max_num_seqs or workload.concurrency or 1
    cards = settings.parallel.tp * settings.parallel.pp
    model: dict[str, Any] = {
        "model_name": Said(request.served_name, "what clients ask for as `model`, and the folder's name"),
        "backend": Said(request.engine, "the planned engine"),
        "max_seq_len": Said(
            context, f"the workload's context of {workload.context:,} tokens, in whole pages of {PAGE}"
        ),
        "cache_size": Said(
            max(context, each * requests), f"{requests} × {each:,} tokens of a request, and at least one context"
        ),
        "cache_mode": Said(cache_mode, "the planned type of the cache"),
        "chunk_size": Said(
            settings.max_num_batched_tokens or CHUNK, "tokens of a prompt at once, as the plan counts them"
        ),
        "max_batch_size": Said(requests, "requests at once"),
    }
    if "vision_config" in request.ir.config:
        model["vision"] = Said(True, "off by default: images would be dropped without an error")
    if settings.parallel.tp > 1:
        model["tensor_parallel"] = Said(True, f"each matrix is cut over {settings.parallel.tp} cards")
    if cards > 1:
        model["gpu_split_auto"] = Said(True, f"layers are spread over {cards} cards as they fill")
    return {"model": model}


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE) * PAGE
