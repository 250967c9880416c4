"""Every remedy that `check` prints is tried: its options exist, take the reason away that they stand beside, or make the model fit."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from passes.errors import InputError
from planner.plan.make import plan

QUESTIONS = (
    {"model": "Qwen/Qwen2.5-32B-Instruct", "gpu": "RTX 4090"},
    {"model": "Qwen/Qwen2.5-32B-Instruct", "gpu": "RTX 4090", "weights": "gptq-4-g128", "context": "32768", "concurrency": "8"},
    {"model": "Llama-3.1-8B-Instruct", "gpu": "T4", "kv-cache-dtype": "fp8"},
    {"model": "Llama-3.1-8B-Instruct", "gpu": "RTX 4090", "weights": "exl2-4.5"},
    {"model": "Llama-3.1-8B-Instruct", "gpu": "RTX 4090", "weights": "exl2-4.5", "engine": "exllamav2", "kv-cache-dtype": "fp8"},
    {"model": "Llama-3.1-8B-Instruct", "gpu": "RTX 4090", "weights": "gptq-3-g128"},
    {"model": "SmolLM2-135M-Instruct", "gpu": "T4", "weights": "w4a16-g128"},
    {"model": "Qwen/Qwen2.5-14B-Instruct", "gpu": "RTX 3090", "concurrency": "8", "context": "16384"},
    {"model": "Mixtral-8x7B-Instruct-v0.1", "gpu": "A100 SXM4 80GB", "gpus": "3"},
    {"model": "DeepSeek-R1", "gpu": "H100", "gpus": "8"},
    {"model": "Qwen/Qwen3.8-27B", "gpu": "RTX PRO 6000", "engine-version": "0.27.0", "gpu-memory-utilization": "0.95"},
    {"model": "gemma-3-4b-it", "gpu": "T4", "context": "4096"},
    {"model": "Llama-3.3-70B-Instruct", "gpu": "H100", "context": "8192", "block-size": "20"},
    {"model": "Llama-3.3-70B-Instruct", "gpu": "A100 SXM4 80GB", "gpus": "2", "context": "8192", "concurrency": "13",
     "input-tokens": "2000", "output-tokens": "400", "min-confidence": "0.95"},
    {"model": "Llama-3.1-8B-Instruct", "gpu": "L4", "weights": "w4a16-g128", "context": "4096", "max-perplexity-increase": "1%"},
    {"model": "Qwen/Qwen2.5-7B-Instruct", "gpu": "L4", "context": "4096", "concurrency": "4", "decode": "30 tok/s"},
    {"model": "Llama-3.1-8B-Instruct", "gpu": "L4", "context": "4096", "concurrency": "8", "input-tokens": "1000", "output-tokens": "100",
     "ttft": "400ms"},
    {"model": "Llama-3.1-8B-Instruct", "gpu": "L4", "context": "4096", "request-rate": "8", "input-tokens": "800", "output-tokens": "200"},
    {"model": "Qwen/Qwen2.5-72B-Instruct", "gpu": "2xL4", "gpu-memory-utilization": "0.8", "max-perplexity-increase": "0.3%"},
)  # fmt: skip


def ask(optimize: Any, options: dict[str, str]) -> tuple[int, dict[str, Any]]:
    flags = [part for name, value in options.items() for part in (f"--{name}", value) if part]
    code, out, err = optimize("check", *flags, "--json")
    assert out, err
    return code, json.loads(out)


def changed(options: dict[str, str], said: str) -> dict[str, str]:
    words = [*shlex.split(said), "--"]
    pairs = itertools.pairwise(words)
    new = {word[2:]: "" if value.startswith("--") else value for word, value in pairs if word.startswith("--")}
    assert new, said
    return options | new


#: What a plan may set of an engine, of the model as it is on all the cards.
PLANNED = (
    ("meta-llama/Llama-3.3-70B-Instruct", "A100 SXM4 80GB", 2, 14, ""),
    ("meta-llama/Llama-3.3-70B-Instruct", "A100 SXM4 80GB", 2, 16, ""),
    ("meta-llama/Llama-3.3-70B-Instruct", "H100", 2, 24, ""),
    ("meta-llama/Llama-3.3-70B-Instruct", "H100", 2, 8, "decode: 10 tok/s"),
    ("Qwen/Qwen2.5-14B-Instruct", "RTX 3090", 2, 24, ""),
    ("meta-llama/Llama-3.1-8B-Instruct", "RTX 4090", 1, 32, "prefer: throughput"),
)  # fmt: skip
AS_ONE = """
model: {}
target: {{ gpu: {}, count: {} }}
engine: vllm
workload: {{ context: 8192, concurrency: {}, input_tokens: 2000, output_tokens: 400 }}
goals: {{ {} }}
passes: {{ quantize: forbid, kv_cache: [auto] }}
"""


@pytest.mark.parametrize("asked", PLANNED, ids=lambda asked: f"{asked[0]}-{asked[1]}-{asked[3]}")
def test_check_proposes_the_settings_that_a_plan_takes(optimize: Any, tmp_path: Path, asked: tuple[Any, ...]) -> None:
    spec = tmp_path / "as-one.yaml"
    spec.write_text(AS_ONE.format(*asked))
    made = plan(spec)
    assert made.result.chosen is not None
    candidate = made.result.chosen.candidate
    code, out, _ = optimize("check", str(spec), "--json")
    document = json.loads(out)
    settings = {name: getattr(candidate.settings, name) for name in candidate.changed}
    assert settings or code == 0
    proposed = [each["options"] for each in document["remedies"] if each["knob"] == "settings"]
    assert proposed == ([settings] if settings else [])


def test_what_fits_by_even_odds_comes_with_settings_that_make_it_sure(optimize: Any) -> None:
    options = {
        "model": "Llama-3.3-70B-Instruct",
        "gpu": "A100 SXM4 80GB",
        "gpus": "2",
        "context": "8192",
        "concurrency": "13",
    }
    options |= {"input-tokens": "2000", "output-tokens": "400"}
    code, document = ask(optimize, options)
    assert (code, document["fits"]) == (0, True) and document["confidence"] < 0.95
    (remedy,) = document["remedies"]
    assert remedy["knob"] == "settings"
    _, after = ask(optimize, changed(options, remedy["message"].partition(" (")[0]))
    assert after["confidence"] >= 0.95 and not after["remedies"]
    _, out, _ = optimize("check", *(part for name, value in options.items() for part in (f"--{name}", value)))
    assert f"fits more surely: {remedy['message']}" in out


def test_a_goal_that_no_change_keeps_beside_the_others_says_what_keeps_it_alone(optimize: Any) -> None:
    """No card here answers in a millisecond; nothing is to be lost, which the model as it is does not."""
    options = {"model": "Llama-3.1-8B-Instruct", "gpu": "L4", "weights": "w4a16-g128", "context": "4096"}
    _, document = ask(optimize, options | {"max-perplexity-increase": "1%", "ttft": "1ms"})
    remedies = {reason["code"]: reason["remedy"] for reason in document["reasons"]}
    assert not document["remedies"] and remedies["TTFT_missed"] is None
    _, after = ask(optimize, changed(options, remedies["perplexity_missed"]) | {"max-perplexity-increase": "1%"})
    assert after["meets"] is True


@pytest.mark.parametrize("options", QUESTIONS, ids=lambda options: "-".join(options.values()))
def test_every_remedy_is_one(optimize: Any, options: dict[str, str]) -> None:
    code, document = ask(optimize, options)
    assert code == 3
    assert document["remedies"]
    for reason in document["reasons"]:
        _, after = ask(optimize, changed(options, reason["remedy"]))
        assert reason["code"] not in {each["code"] for each in after["reasons"]}, reason
    for remedy in document["remedies"]:
        code, after = ask(optimize, changed(options, remedy["message"].partition(" (")[0]))
        assert (code, after["fits"]) == (0, True), remedy


def test_a_version_that_lacks_a_flag_of_the_command_is_no_remedy(optimize: Any) -> None:
    """vLLM reads Llama 3.2 Vision to 0.10.2, and takes the flag from 0.17 on."""
    asked = {"model": "meta-llama/Llama-3.2-11B-Vision-Instruct", "gpu": "L40S", "language-model-only": ""}
    code, document = ask(optimize, asked)
    assert code == 3
    for said in (*document["remedies"], *document["reasons"]):
        assert "--engine-version" not in (said.get("remedy") or said["message"])
    code, document = ask(optimize, {name: value for name, value in asked.items() if value})
    assert code == 3 and any("--engine-version" in remedy["message"] for remedy in document["remedies"])


def test_what_is_not_modelled_says_only_that(optimize: Any) -> None:
    code, out, _ = optimize("check", "--model", "Qwen/Qwen2.5-32B-Instruct", "--gpu", "MI300X")
    assert code == 6
    assert "not known" in out
    assert "AMD cards is not modelled" in out
    assert "fit" not in out
    code, document = ask(optimize, {"model": "Qwen/Qwen2.5-32B-Instruct", "gpu": "MI300X"})
    assert [reason["code"] for reason in document["reasons"]] == ["vendor_not_modelled"]
    assert not document["remedies"]
    assert document["confidence"] == 0.5


@pytest.mark.parametrize("engine", ["vllm", "exllamav2", "exllamav3"])
def test_a_card_of_another_maker_is_not_modelled_by_any_engine(optimize: Any, engine: str) -> None:
    code, document = ask(optimize, {"model": "google/gemma-3-12b-it", "gpu": "MI300X", "engine": engine})
    assert code == 6 and [reason["code"] for reason in document["reasons"]] == ["vendor_not_modelled"]


def test_fewer_clients_than_may_be_unanswered_are_no_contradiction(optimize: Any) -> None:
    """A remedy of a closed loop that was told by `--max-concurrency` names the clients."""
    asked = {
        "model": "meta-llama/Llama-3.3-70B-Instruct",
        "gpu": "GB10",
        "max-concurrency": "16",
        "weights": "w4a16-g64-rtn",
    }
    code, document = ask(optimize, asked)
    assert code == 3
    fewer = [each for each in document["remedies"] if each["knob"] == "concurrency"]
    for remedy in fewer:
        assert ask(optimize, changed(asked, remedy["message"].partition(" (")[0]))[0] == 0
    assert fewer
    code, _, err = optimize(
        "check", "--model", "Qwen/Qwen3-8B", "--gpu", "L4", "--concurrency", "20", "--max-concurrency", "16"
    )
    assert code == 2 and "of one closed loop" in err


def test_formats_that_lose_a_tenth_are_no_remedy(optimize: Any) -> None:
    _, document = ask(optimize, {"model": "Llama-3.3-70B-Instruct", "gpu": "RTX 4090"})
    assert all("exl2-2" not in remedy["message"] for remedy in document["remedies"])


GOALS = """
model: meta-llama/Llama-3.1-8B-Instruct
target: { gpu: L4, count: 1, reserve: 0.5 GiB }
workload: { context: 8192, concurrency: 50, input_tokens: 2000, output_tokens: 400 }
goals: { ttft: 2 s, tpot: 120 ms, decode: 10 tok/s, quality: { max_perplexity_increase: 5% } }
"""


def test_remedies_keep_every_goal_and_a_published_checkpoint_is_among_them(optimize: Any, tmp_path: Path) -> None:
    spec = tmp_path / "goals.yaml"
    spec.write_text(GOALS)
    code, out, _ = optimize("check", str(spec), "--json")
    said = [remedy["message"].partition(" (")[0] for remedy in json.loads(out)["remedies"]]
    assert code == 3 and said[0] == "--model nvidia/Llama-3.1-8B-Instruct-FP8 --kv-cache-dtype fp8"
    for remedy in said:
        code, out, _ = optimize("check", str(spec), *shlex.split(remedy))
        assert code == 0, (remedy, out)


def test_where_no_change_keeps_all_goals_it_says_so(optimize: Any, tmp_path: Path) -> None:
    spec = tmp_path / "goals.yaml"
    spec.write_text(GOALS.replace("ttft: 2 s", "ttft: 1 ms"))
    code, out, _ = optimize("check", str(spec))
    assert code == 3 and "what would do" not in out and "no change of one kind" in out


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (
            {"model": "llama-3.1-8b", "gpu": "RTX 3060 12GB"},
            "--model hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4",
        ),
        ({"model": "gpt-oss-20b", "gpu": "T4"}, "--gpu L4"),
        ({"model": "gpt-oss-120b", "gpu": "L40S", "context": "131072"}, "--gpus 2"),
        (
            {"model": "Llama-3.3-70B-Instruct", "gpu": "H100", "gpus": "2", "context": "12288"},
            "--max-num-seqs 8",
        ),
        (
            {"model": "Qwen/Qwen3-30B-A3B", "gpu": "H100", "gpus": "7", "tp": "1", "dp": "7", "context": "8192"},
            "--ep 7",
        ),
        (
            {
                "model": "Qwen/Qwen3-235B-A22B-FP8",
                "gpu": "H100",
                "gpus": "8",
                "context": "8192",
                "engine-version": "0.11.0",
            },
            "--ep 8",
        ),
    ],
)
def test_remedies_are_those_that_an_expert_tries(optimize: Any, options: dict[str, str], first: str) -> None:
    _, document = ask(optimize, options)
    said = [remedy["message"] for remedy in document["remedies"]]
    assert said[0].startswith(first)
    assert len({remedy["knob"] for remedy in document["remedies"]}) == len(said)
    assert not any(word in line for line in said for word in ("int4_per_token_head", "Laptop", "exllamav2"))
    assert said[0].startswith(document["reasons"][-1]["remedy"])


def test_odds_that_are_not_sure_are_said_beside_the_remedy(optimize: Any) -> None:
    options = {"model": "Llama-3.3-70B-Instruct", "gpu": "H100", "gpus": "2", "context": "8192"}
    _, document = ask(optimize, options)
    for remedy in document["remedies"]:
        _, after = ask(optimize, changed(options, remedy["message"].partition(" (")[0]))
        assert after["confidence"] >= 0.8
        told = f"fits with odds of {after['confidence']:.0%}" in remedy["message"]
        assert told == (after["confidence"] < 0.95), remedy


def test_a_width_that_groups_do_not_divide_comes_with_the_nearest_that_they_do() -> None:
    passes = {"prune": {"intermediate": 9830}, "quantize": {"formats": "w4a16-g128"}}
    made = plan(
        {"model": "meta-llama/Llama-3.1-8B-Instruct", "target": {"gpu": "rtx-4090"}, "engine": "vllm", "passes": passes}
    )
    assert not made.feasible and made.document.illegal[0].remedy == "passes: {prune: {intermediate: 9856}}"


@pytest.mark.parametrize("distill", [{"tokens": 1_000_000}, {"method": "blockwise"}])
def test_a_distillation_with_nothing_to_recover_comes_with_a_pruning_that_it_may_stand_behind(
    distill: dict[str, Any],
) -> None:
    spec: dict[str, Any] = {
        "model": "Qwen/Qwen3-0.6B", "target": {"gpu": "rtx-4090"}, "engine": "vllm",
        "passes": {"distill": distill, "quantize": "forbid", "kv_cache": ["auto"]},
    }  # fmt: skip
    made = plan(spec)
    assert not made.feasible and made.document.illegal[0].remedy == "passes: {prune: {depth: 1}}"
    assert plan(spec | {"passes": {**spec["passes"], "prune": {"depth": 1}}}).feasible


def test_a_rank_above_the_hidden_size_is_refused_with_it() -> None:
    passes = {"prune": {"depth": 2}, "distill": {"lora_rank": 5000, "tokens": 1_000_000}}
    made = plan({"model": "Qwen/Qwen3-0.6B", "target": {"gpu": "rtx-4090"}, "engine": "vllm", "passes": passes})
    assert not made.feasible and "hidden size of Qwen/Qwen3-0.6B, 1,024" in made.document.illegal[0].message


def test_a_key_that_is_another_by_its_meaning_is_told() -> None:
    with pytest.raises(InputError, match="Did you mean 'intermediate'"):
        plan({"model": "Qwen/Qwen3-0.6B", "target": {"gpu": "L4"}, "passes": {"prune": {"width": 9830}}})
