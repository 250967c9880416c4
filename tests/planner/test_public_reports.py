"""What people reported of start-ups, asked as a pasted command: nothing was fitted to these. Each names its report."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

#: Report, card, version, command, and the code of what stops it (None: it runs).
REPORTS = (
    ("vllm#17604", "A100 40GB", "0.9.1", "Qwen/Qwen3-235B-A22B-GPTQ-Int4 -tp 8 --enforce-eager", "group_size_does_not_divide_shard"),
    ("zai-org/GLM-V#178", "A100 80GB", "0.10.2", "zai-org/GLM-4.5V-FP8 -tp 4", "shape_without_kernel"),
    ("vllm#13122", "RTX 4090", "0.7.3", "unsloth/DeepSeek-R1-Distill-Llama-70B-bnb-4bit -tp 8 --max-model-len 16384", "tp_of_bitsandbytes"),
    ("vllm#13122", "RTX 4090", "0.7.3", "unsloth/DeepSeek-R1-Distill-Llama-70B-bnb-4bit -pp 8 --max-model-len 16384", None),
    ("vllm#36734", "A100 80GB", "0.17.1",
     "Qwen/Qwen3.5-122B-A10B-GPTQ-Int4 -tp 2 --max-model-len 131072 --max-num-seqs 16 --enable-prefix-caching", "block_larger_than_step"),
    ("vllm#49011", "RTX 5090", "0.25.1", "unsloth/Qwen3.6-27B-NVFP4 --kv-cache-dtype nvfp4 --max-model-len 32768 --max-num-seqs 8",
     "kv_dtype_without_backend"),
    ("vllm#49064", "H100", "0.28.0", "Qwen/Qwen3.8-27B --max-model-len 132000 --gpu-memory-utilization 0.9", "too_few_state_blocks"),
    ("vllm#52915", "H100", "0.28.0", "Qwen/Qwen3.6-35B-A3B-FP8 -tp 8 --kv-cache-dtype fp8 --max-num-seqs 8",
     "fp8_block_does_not_divide_part"),
    ("gpustack#2259", "RTX 4090", "0.8.5", "google/gemma-3-27b-it --max-model-len 8192 -tp 3", "tp_does_not_divide_heads"),
    ("vllm#4202", "V100 32GB", "0.16.0", "Qwen/Qwen1.5-32B-Chat-AWQ --max-model-len 512", "awq_needs_sm75"),
    ("vllm#29240", "RTX PRO 6000 Server", "0.11.2", "zai-org/GLM-4.6-FP8 -tp 8 --enable-expert-parallel --max-model-len 32768", None),
    ("vllm#6689", "L4", "0.6.0", "meta-llama/Meta-Llama-3.1-8B-Instruct --max-model-len 1024", None),
)  # fmt: skip


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: f"{report[0]}-{report[3].split()[0]}")
def test_a_report_is_answered_as_it_went(optimize: Any, report: tuple[str, str, str, str, str | None]) -> None:
    _, card, version, command, code = report
    words = [
        "check",
        "--json",
        "--gpu",
        card,
        "--engine-version",
        version,
        "--",
        "vllm",
        "serve",
        *shlex.split(command),
    ]
    exit_code, out, err = optimize(*words)
    answer = json.loads(out)
    assert "error" not in answer, err
    codes = [reason["code"] for reason in answer["reasons"]]
    assert (exit_code, answer["fits"]) == ((0, True) if code is None else (3, False)), codes
    assert (code is None and not codes) or code in codes


def test_a_model_is_not_answered_for_by_its_smaller_sibling(optimize: Any) -> None:
    """vllm#4650: DeepSeek-Coder-V2-Instruct (236B) was answered as its Lite sibling of 16B."""
    code, out, _ = optimize(
        "check", "--json", "--gpu", "H100", "--", "vllm", "serve", "deepseek-ai/DeepSeek-Coder-V2-Instruct"
    )
    assert code == 2 and "DeepSeek-Coder-V2-Lite-Instruct" in json.loads(out)["error"]["message"]
