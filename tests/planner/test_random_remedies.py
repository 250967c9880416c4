"""Over a fixed list of random questions, each remedy that `check` prints is an option, and its reason goes.

`test_remedies` holds what remedies must be among; here every one that is printed is followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from tests.planner.test_remedies import ask, changed

_MODELS = (
    "Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-72B-Instruct", "Llama-3.1-8B-Instruct", "Llama-3.3-70B-Instruct", "gemma-3-27b-it",
    "gemma-3-4b-it", "Mixtral-8x7B-Instruct-v0.1", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-8B", "mistralai/Mistral-Small-24B-Instruct-2501",
    "DeepSeek-R1",
    "Qwen/Qwen2.5-VL-7B-Instruct", "gpt-oss-20b", "microsoft/phi-4",
)  # fmt: skip
_CARDS = ("T4", "L4", "RTX 3090", "RTX 4090", "RTX 5090", "A10", "A100 40GB", "L40S", "H100", "RTX 3060 12GB")
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "gpus": ("2", "3", "4"), "weights": ("w4a16-g128", "gptq-4-g128", "fp8", "exl2-4.5", "nvfp4", "w8a8", "awq-4-g128"),
    "kv-cache-dtype": ("fp8", "q4", "fp8_e5m2", "nvfp4"), "context": ("4096", "32768", "131072"), "concurrency": ("1", "8", "64"),
    "engine": ("exllamav2", "exllamav3"), "engine-version": ("0.10.2", "0.27.0"), "gpu-memory-utilization": ("0.5", "0.95"),
    "max-num-seqs": ("8", "512"), "max-num-batched-tokens": ("1024", "65536"), "block-size": ("16", "24"), "dtype": ("float16", "float32"),
}  # fmt: skip


def _asked(rng: Random) -> dict[str, str]:
    options = {"model": rng.choice(_MODELS), "gpu": rng.choice(_CARDS)}
    return options | {
        name: rng.choice(_OPTIONS[name]) for name in rng.sample(sorted(_OPTIONS), rng.choice((1, 1, 2, 3)))
    }


_RNG = Random(18)
QUESTIONS = tuple(_asked(_RNG) for _ in range(44))


@pytest.mark.parametrize("options", QUESTIONS, ids=lambda options: "-".join(options.values()))
def test_what_check_says_would_do_does(optimize: Any, options: dict[str, str]) -> None:
    code, document = ask(optimize, options)
    assert (code == 3) == (bool(document["reasons"]) and document["modelled"])
    for reason in document["reasons"]:
        if reason["remedy"] is None:
            assert not document["remedies"], reason
            continue
        _, after = ask(optimize, changed(options, reason["remedy"]))
        assert reason["code"] not in {each["code"] for each in after["reasons"]}, reason
    for remedy in document["remedies"]:
        code, after = ask(optimize, changed(options, remedy["message"].partition(" (")[0]))
        assert (code, after["fits"]) == (0, True), remedy


def test_the_questions_are_mostly_refused(optimize: Any) -> None:
    refused = [options for options in QUESTIONS[:12] if ask(optimize, options)[0] == 3]
    assert len(refused) >= 6
