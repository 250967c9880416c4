"""A program for ExLlama's own Python that loads a result with the planned cache and answers one prompt.

Written after the packages' sources: exllamav2 0.3.2 (`generator/dynamic.py`, `cache.py`), exllamav3 1.6.5 (`generator/generator.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from targets.launch.request import LaunchFile, LaunchRequest

_HEAD = '''"""@LABEL@

Loads the checkpoint with the planned cache and answers one prompt: python @NAME@ "A prompt" [tokens]
"""

import sys
from pathlib import Path

@IMPORTS@

MODEL = @MODEL@
CONTEXT = @CONTEXT@  # the workload's context, in whole pages of the cache
CACHE = @CACHE@  # tokens of all requests at once
REQUESTS = @REQUESTS@  # requests at once
CHUNK = @CHUNK@  # tokens of a prompt that are computed at once

prompt, tokens = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200
'''
_V2_IMPORTS = """from exllamav2 import ExLlamaV2, @TYPE@, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator"""
_V2 = """config = ExLlamaV2Config(str(MODEL))
config.max_seq_len, config.max_input_len = CONTEXT, CHUNK
model = ExLlamaV2(config)
cache = @TYPE@(model, max_seq_len=CACHE, lazy=True)  # the planned type of the cache
@LOAD@
generator = ExLlamaV2DynamicGenerator(
    model=model, cache=cache, tokenizer=ExLlamaV2Tokenizer(config), max_batch_size=REQUESTS, max_chunk_size=CHUNK
)
print(generator.generate(prompt=prompt, max_new_tokens=tokens))
"""
_V2_SPLIT = "model.load_autosplit(cache)  # layer after layer, from the first card to the last"
_V3_IMPORTS = "from exllamav3 import Cache, @TYPE@, Config, Generator, Model, Tokenizer"
_V3 = """config = Config.from_directory(str(MODEL))
model = Model.from_config(config)
cache = Cache(model, max_num_tokens=CACHE, layer_type=@TYPE@@BITS@)  # the planned type of the cache
model.load(tensor_p=@TENSOR@, progressbar=True)
generator = Generator(
    model=model, cache=cache, tokenizer=Tokenizer.from_config(config), max_batch_size=REQUESTS, max_chunk_size=CHUNK
)
print(generator.generate(prompt=prompt, max_new_tokens=tokens))
"""
_NAME = "answer.py"


def program(request: LaunchRequest, model: Mapping[str, Any]) -> LaunchFile | None:
    """Return the program with the figures of TabbyAPI's section `model`; None for an engine that has none."""
    write = {"exllamav2": _second, "exllamav3": _third}.get(request.engine)
    if write is None:
        return None
    imports, body = write(model)
    words = {
        "@IMPORTS@": imports, "@LABEL@": request.label, "@NAME@": _NAME, "@MODEL@": _place(request),
        "@CONTEXT@": model["max_seq_len"], "@CACHE@": model["cache_size"], "@REQUESTS@": model["max_batch_size"],
        "@CHUNK@": model["chunk_size"],
    }  # fmt: skip
    text = f"{_HEAD}\n{body}"
    for word, value in words.items():
        text = text.replace(word, str(value))
    return LaunchFile(_NAME, text)


def _place(request: LaunchRequest) -> str:
    """The checkpoint: the folder that holds the launch folder, or one of its own."""
    if request.served is None:
        return "Path(__file__).resolve().parent.parent"
    return f"Path({json.dumps(str(request.served.folder or request.served.name))})"


def _second(model: Mapping[str, Any]) -> tuple[str, str]:
    kind = "ExLlamaV2Cache" if model["cache_mode"] == "FP16" else f"ExLlamaV2Cache_{model['cache_mode']}"
    return _V2_IMPORTS.replace("@TYPE@", kind), _V2.replace("@TYPE@", kind).replace("@LOAD@", _V2_SPLIT)


def _third(model: Mapping[str, Any]) -> tuple[str, str]:
    mode = str(model["cache_mode"])
    kind = "CacheLayer_fp16" if mode == "FP16" else "CacheLayer_quant"
    bits = "" if mode == "FP16" else ", k_bits={}, v_bits={}".format(*mode.split(","))
    tensor = str(model.get("tensor_parallel", False))
    body = _V3.replace("@TYPE@", kind).replace("@BITS@", bits).replace("@TENSOR@", tensor)
    return _V3_IMPORTS.replace("@TYPE@", kind), body
