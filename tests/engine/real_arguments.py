"""Runs inside the engine's environment: whether vLLM's own parser takes what launch files tell it, and makes an engine's configuration.

    python real_arguments.py CASES.json     [{"name", "argv" or "kwargs", "model", "config"}, …]  →  {"name", "told", "error"} each

`config`: the folder with a model's config.json, for which the configuration is built; null: only parsed.
`told`: what the parser understood.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# Offline, vLLM would look the model's name up in this machine's cache; what is built here lies in a folder.
os.environ |= {"HF_HUB_OFFLINE": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.model_executor.models.registry import ModelRegistry
from vllm.utils.argparse_utils import FlexibleArgumentParser

FIELDS = (
    "model", "max_model_len", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "gpu_memory_utilization",
    "max_num_seqs", "max_num_batched_tokens", "kv_cache_dtype", "kv_cache_memory_bytes", "dtype", "quantization", "enforce_eager",
    "enable_expert_parallel", "revision",
)  # fmt: skip
#: What this build cannot do and a card can: the configuration is made without it.
CARDS_ONLY = {
    "tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1, "enable_expert_parallel": False,
    "kv_cache_dtype": "auto", "quantization": None, "distributed_executor_backend": None, "nnodes": 1, "node_rank": 0,
    "data_parallel_size_local": None, "data_parallel_start_rank": None, "data_parallel_address": None,
    "data_parallel_rpc_port": None,
}  # fmt: skip


def parsed(case: dict) -> AsyncEngineArgs:
    if "kwargs" in case:
        return AsyncEngineArgs(model=case["model"], **case["kwargs"])
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    return AsyncEngineArgs.from_cli_args(parser.parse_args(case["argv"]))


def built(arguments: AsyncEngineArgs, folder: str) -> int:
    """The context of the configuration that arguments become, for the model whose config.json lies in a folder."""
    for name in json.loads((Path(folder) / "config.json").read_text())["architectures"]:
        # From its object: spares vLLM the process that it otherwise starts to look at each class.
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    arguments.model, arguments.tokenizer, arguments.revision, arguments.skip_tokenizer_init = folder, None, None, True
    for name, value in CARDS_ONLY.items():
        setattr(arguments, name, value)
    return arguments.create_engine_config().model_config.max_model_len


def answer(case: dict) -> dict:
    try:
        arguments = parsed(case)
        told = {name: getattr(arguments, name) for name in FIELDS}
        if case["config"] is not None:
            told["built"] = built(arguments, case["config"])
    except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever vLLM raises is its answer)
        return {"name": case["name"], "error": f"{type(error).__name__}: {error}"[:800]}
    return {"name": case["name"], "told": told, "error": None}


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(answer(each), default=str), flush=True)
