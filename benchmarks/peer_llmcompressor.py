"""llm-compressor's GPTQ on given tokens: run inside its own environment (it pins another compressed-tensors).

    python -m benchmarks.peer_llmcompressor MODEL TOKENS.pt OUT GROUP_SIZE [actorder]

Prints one JSON line with the seconds of `oneshot` and the peak memory of the process.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model_folder: str, tokens_file: str, out: str, group_size: str, actorder: str = "static") -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokens = torch.load(tokens_file)
    rows = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
    recipe = GPTQModifier(
        config_groups={
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": int(group_size),
                    "actorder": actorder,
                },
            }
        },
        ignore=["lm_head"],
    )  # fmt: skip
    began = time.monotonic()
    oneshot(
        model=model, tokenizer=tokenizer, dataset=rows, recipe=recipe, max_seq_length=tokens.shape[1],
        num_calibration_samples=len(tokens), shuffle_calibration_samples=False,
    )  # fmt: skip
    seconds = time.monotonic() - began
    model.save_pretrained(out, save_compressed=True)
    tokenizer.save_pretrained(out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": round(seconds, 1), "peak_bytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
