"""`check` in the words that people have: pasted server commands, specs, plans, goals, and how sure it must be.

The commands are those of public pages, each with its source; what they print beside the memory is left as it stands there.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from passes.ir import catalog

GIB = 1 << 30
ROOT = Path(__file__).resolve().parents[2]

#: (source, card, command, whether it fits, GiB of weights a rank)
COMMANDS = [
    (
        "vllm-project/recipes, models/deepseek-ai/DeepSeek-V3.1.yaml (8959cf64)", "H200",
        "vllm serve deepseek-ai/DeepSeek-V3.1 --enable-expert-parallel --tensor-parallel-size 8 --enable-auto-tool-choice "
        "--tool-call-parser deepseek_v31 --speculative-config '{\"method\": \"mtp\", \"num_speculative_tokens\": 1}'",
        True, (80, 84),
    ),
    (
        "docs.vllm.ai, deployment/docker", "RTX 4090",
        "docker run --runtime nvidia --gpus all -v ~/.cache/huggingface:/root/.cache/huggingface --env HF_TOKEN=x -p 8000:8000 --ipc=host "
        "vllm/vllm-openai:v0.11.0 --model Qwen/Qwen2.5-7B-Instruct --max-model-len 16k",
        True, (14, 14.5),
    ),
    (
        "vllm-project/recipes, models/Qwen/Qwen3.5-27B.yaml (8959cf64), text only", "H100",
        "vllm serve Qwen/Qwen3.5-27B --tensor-parallel-size 2 --language-model-only --enable-prefix-caching --mamba-cache-mode align "
        "--max-model-len 262144 --reasoning-parser qwen3",
        True, (24.5, 26),
    ),
    (
        "vllm-project/recipes, models/Qwen/Qwen2.5-VL-72B-Instruct.yaml (8959cf64), the 7B", "A100 80GB",
        "CUDA_VISIBLE_DEVICES=0,1 python -m vllm.entrypoints.openai.api_server --model Qwen/Qwen2.5-VL-7B-Instruct "
        "--limit-mm-per-prompt '{\"image\": 2, \"video\": 0}' --mm-encoder-tp-mode data -tp 2 --mm-processor-cache-gb 0",
        True, (8.3, 8.7),
    ),
    (
        "docs.vllm.ai, features/lora", "L4",
        "vllm serve meta-llama/Llama-3.1-8B-Instruct --enable-lora --max-loras 4 --max-lora-rank 64 --lora-modules sql=/adapters/sql "
        "--quantization fp8 --kv-cache-dtype fp8 --max-model-len 8192",
        True, (9.5, 10.2),
    ),
    (
        "docs.vllm.ai, features/speculative_decoding/eagle", "H100",
        "vllm serve meta-llama/Llama-3.3-70B-Instruct --tensor-parallel-size 4 --speculative-config "
        "'{\"method\": \"eagle3\", \"model\": \"yuhuili/EAGLE3-LLaMA3.3-Instruct-70B\", \"num_speculative_tokens\": 3}'",
        True, (33, 34.5),
    ),
    (
        "vllm-project/recipes, models/openai/gpt-oss-120b.yaml (8959cf64)", "B200",
        "vllm serve openai/gpt-oss-120b --moe-backend flashinfer_cutlass --attention-backend FLASHINFER --async-scheduling "
        "--max-num-batched-tokens 8192 --compilation-config '{\"cudagraph_capture_sizes\": [1, 2, 4, 8]}'",
        True, (63, 66),  # padded: 65.97 as TensorRT-LLM's kernels have it, 63.4 as this backend's
    ),
    (
        "vllm-project/vllm discussions, offload on one card", "RTX 3090",
        "vllm serve Qwen/Qwen2.5-14B-Instruct --cpu-offload-gb 10 --max-model-len 8K --enforce-eager",
        True, (17, 18),
    ),
    (
        "docs.vllm.ai, getting_started/quickstart, on a small card", "RTX 4090",
        "vllm serve meta-llama/Llama-3.3-70B-Instruct --max_model_len=4096 --gpu_memory_utilization=0.95",
        False, (130, 133),
    ),
    (
        "vllm-project/recipes, models/Qwen/Qwen3-Reranker.yaml (8959cf64)", "L4:1",
        "vllm serve Qwen/Qwen3-Reranker-0.6B --runner pooling --hf-overrides '{\"architectures\": [\"Qwen3ForSequenceClassification\"], "
        "\"classifier_from_token\": [\"no\", \"yes\"], \"is_original_qwen3_reranker\": true}'",
        True, (1.0, 1.3),
    ),
    (
        "vllm-project/recipes, models/moonshotai/Kimi-K2.yaml (8959cf64), decode context parallel", "H200",
        "vllm serve deepseek-ai/DeepSeek-V3 -tp 8 --decode-context-parallel-size 8 --max-model-len auto --max-num-seqs 64",
        True, (79, 80),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "degrees", [("--pp", "1000000000"), ("--gpus", "1000000000", "--engine", "exllamav2"), ("--dp", "5000")]
)
def test_more_cards_than_are_counted_with_are_refused(optimize: Any, degrees: tuple[str, ...]) -> None:
    code, _, err = optimize("check", "--model", "Qwen/Qwen2.5-1.5B-Instruct", "--gpu", "L4", *degrees)
    assert code == 2 and "are more than are counted with (4,096)" in err


@pytest.mark.parametrize(
    ("source", "card", "command", "fits", "gib"), COMMANDS, ids=[source for source, *_ in COMMANDS]
)
def test_a_real_command_is_answered(
    optimize: Any, source: str, card: str, command: str, fits: bool, gib: tuple[float, float]
) -> None:
    code, out, _ = optimize("check", "--gpu", card, "--json", "--", *shlex.split(command))
    document = json.loads(out)
    assert (code, document["fits"]) == (0 if fits else 3, fits), document["reasons"]
    assert gib[0] <= document["memory"]["weights"]["value"] / GIB <= gib[1]


def check(optimize: Any, *arguments: object) -> tuple[int, dict[str, Any]]:
    code, out, _ = optimize("check", *arguments, "--json")
    return code, json.loads(out)


def test_flags_of_vllm_are_taken_beside_options(optimize: Any) -> None:
    model = ("--model", "llama-3.1-8b", "--gpu", "RTX 4090", "--context", 4096)
    _, plain = check(optimize, *model)
    code, document = check(optimize, *model, "--enable-lora", "--max_lora_rank", 64, "--port", 8000)
    assert code == 0
    assert document["memory"]["weights"]["value"] > plain["memory"]["weights"]["value"]
    assert any("--port" in note for note in document["notes"])


def test_options_are_laid_over_a_pasted_command(optimize: Any) -> None:
    pasted = ("--", "vllm", "serve", "llama-3.1-8b", "--max-model-len", "8k")
    _, out, _ = optimize("check", "--gpu", "L4", "--context", 4096, "--json", *pasted)
    assert json.loads(out)["context"] == 4096
    _, out, _ = optimize("check", "--gpu", "L4", "--json", *pasted)
    assert json.loads(out)["context"] == 8000


def test_an_answer_is_readable_in_60_columns(optimize: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for asked in (("--context", "128k", "--decode", "40"), ("--live",)):
        _, out, _ = optimize("check", "--model", "Llama-3.1-8B-Instruct", "--gpu", "L4", *asked)
        assert out and max(map(len, out.splitlines())) <= 60
    _, out, _ = optimize("launch", "--list")
    assert out and max(map(len, out.splitlines())) <= 60


def test_a_misspelt_option_names_the_nearest(optimize: Any) -> None:
    code, document = check(optimize, "--model", "llama-3.1-8b", "--gpuu", "L4")
    assert code == 2
    assert "--gpu" in document["error"]["message"]


@pytest.mark.parametrize(
    ("gpu", "words", "whole"),
    [
        ("RTX", ["4090"], "RTX 4090"),
        ("RTX", ["PRO", "6000"], "RTX PRO 6000"),
        ("H100", ["PCIe"], "H100 PCIe"),
        ("DGX", ["Spark"], "DGX Spark"),
    ],
)
def test_a_card_s_name_without_quotes_is_no_other_card(optimize: Any, gpu: str, words: list[str], whole: str) -> None:
    code, document = check(optimize, "--gpu", gpu, *words, "--", "vllm", "serve", "Qwen/Qwen3-8B")
    assert code == 2
    assert repr(whole) in document["error"]["remedy"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["llama-server", "-hf", "ggml-org/gpt-oss-20b-GGUF", "-c", "0"], "vllm serve MODEL"),
        (["trtllm-serve", "Qwen/Qwen3-8B", "--tp_size", "2"], "vllm serve MODEL"),
        (["Qwen/Qwen3-8B", "--max-model-len", "8192"], "--model Qwen/Qwen3-8B"),
    ],
)
def test_what_starts_no_vllm_is_told_before_its_flags_are_read(optimize: Any, words: list[str], says: str) -> None:
    code, document = check(optimize, "--gpu", "L4", "--", *words)
    assert code == 2
    assert "starts no server of vLLM" in document["error"]["message"]
    assert says in document["error"]["remedy"]


def test_a_usage_error_is_a_document_too(optimize: Any) -> None:
    code, document = check(optimize, "--model", "llama-3.1-8b", "--gpu", "L4", "--tp", "two")
    assert code == 2
    assert "--tp" in document["error"]["message"]


@pytest.mark.parametrize(("text", "context"), [("32k", 32768), ("8K", 8192), ("4096", 4096)])
def test_lengths_are_read_as_people_write_them(optimize: Any, text: str, context: int) -> None:
    assert check(optimize, "--model", "llama-3.1-8b", "--gpu", "H100", "--context", text)[1]["context"] == context


@pytest.mark.parametrize("option", ["--input-tokens", "--concurrency", "--kv-cache-memory"])
def test_only_a_context_is_found_by_itself(optimize: Any, option: str) -> None:
    code, _, err = optimize("check", "--model", "Qwen/Qwen3-8B", "--gpu", "L4", option, "auto")
    assert code == 2 and option in err and "no whole number" in err


def test_requests_longer_than_the_models_context_are_refused(optimize: Any) -> None:
    code, _, err = optimize("check", "--model", "Qwen/Qwen3-8B", "--gpu", "H100", "--input-tokens", "100000")
    assert code == 2 and "40,960" in err


def test_a_context_that_is_found_holds_the_requests(optimize: Any) -> None:
    """The longest that fits on this card is 22,976: a server of that would refuse them."""
    options = ("--model", "Qwen/Qwen3-8B", "--gpu", "L4", "--context", "auto", "--input-tokens", "30000")
    code, document = check(optimize, *options)
    assert code == 3 and not document["fits"] and document["context"] == 30000


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-model-len", "0"), ("--tensor-parallel-size", "0"), ("--max-num-seqs", "99999999999999999999"), ("--block-size", "0"),
        ("--cpu-offload-gb", "-3"), ("--num-gpu-blocks-override", "0"), ("--max-lora-rank", "0"), ("--cuda-graph-sizes", "0"),
        ("--compilation-config", '{"cudagraph_capture_sizes": [0]}'), ("--compilation-config", '{"max_cudagraph_capture_size": "x"}'),
        ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 0}'),
    ],
)  # fmt: skip
def test_figures_that_the_server_refuses_are_refused(optimize: Any, flag: str, value: str) -> None:
    lora = ("--enable-lora",) if "lora" in flag else ()
    code, _, err = optimize("check", "--gpu", "L4", "--", "vllm", "serve", "Qwen/Qwen3-8B", *lora, flag, value)
    assert (
        code == 2 and flag in err and any(each in err for each in ("out of range", "no whole number", "an integer is"))
    )


def test_a_quote_that_is_left_open_is_told(optimize: Any) -> None:
    code, _, err = optimize("check", "--gpu", "L4", "--", "vllm serve Qwen/Qwen3-8B 'open")
    assert code == 2 and "close every quote" in err


@pytest.mark.parametrize(("degrees", "spread", "legal"), [(1, 3, False), (8, 4, False), (16, 2, True), (16, 8, False)])
def test_tokens_are_spread_over_ranks_that_hold_the_same_heads(
    optimize: Any, degrees: int, spread: int, legal: bool
) -> None:
    """Qwen3-8B has eight heads of keys and values: sixteen ranks hold each twice."""
    flags = ("-tp", degrees, "--decode-context-parallel-size", spread)
    code, out, _ = optimize("check", "--gpu", "16xL4", "--json", "--", "vllm", "serve", "Qwen/Qwen3-8B", *flags)
    codes = {reason["code"] for reason in json.loads(out)["reasons"]}
    assert ("context_parallel_does_not_divide" not in codes) is legal and (code == 0) is legal


def test_the_longest_context_that_fits_is_taken(optimize: Any) -> None:
    code, document = check(optimize, "--model", "llama-3.1-8b", "--gpu", "RTX 4090", "--context", "auto")
    assert code == 0
    assert 20_000 < document["context"] < 131_072


def test_a_quantization_that_the_checkpoint_has_not_is_refused(optimize: Any) -> None:
    code, document = check(
        optimize, "--model", "llama-3.1-8b", "--gpu", "L4", "--context", 4096, "--quantization", "awq"
    )
    assert (code, document["reasons"][0]["code"]) == (3, "quantization_mismatch")


def test_overrides_change_the_model(optimize: Any) -> None:
    yarn = '{"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1000000}, '
    yarn += '"max_position_embeddings": 131072}'
    code, document = check(
        optimize, "--model", "Qwen/Qwen2.5-7B-Instruct", "--gpu", "H100", "--context", 131072, "--hf-overrides", yarn
    )
    assert code == 0 and document["reasons"] == []


def test_yarn_alone_makes_a_context_longer(optimize: Any) -> None:
    yarn = '{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}'
    flags = (
        "--rope-scaling",
        yarn,
        "--max-model-len",
        "131072",
        "--chat-template",
        "{% for each in messages %}{% endfor %}",
    )
    code, out, _ = optimize("check", "--gpu", "H100", "--json", "--", "vllm", "serve", "Qwen/Qwen3-8B", *flags)
    assert code == 0 and json.loads(out)["reasons"] == []


def test_a_spec_is_checked_with_its_goals(optimize: Any) -> None:
    code, document = check(optimize, ROOT / "examples" / "qwen2.5-32b-rtx4090.yaml")
    assert code == 3
    assert document["meets"] is False
    assert {goal["name"] for goal in document["goals"]} >= {"decode", "TTFT"}


@pytest.mark.parametrize("engine", ["", "engine: vllm\n"])
def test_a_spec_is_checked_on_all_its_cards(optimize: Any, tmp_path: Path, engine: str) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"model: Qwen/Qwen2.5-32B-Instruct\ntarget: {{ gpu: A100 80GB, count: 2 }}\n{engine}workload: {{ context: 8192 }}\n"
    )
    code, document = check(optimize, spec)
    assert (code, document["gpus"]) == (0, 2)


def test_a_plan_is_checked_as_it_chose(optimize: Any, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: RTX 4090 }\nengine: vllm\nworkload: { context: 8192 }\n"
    )
    plan = tmp_path / "it.plan.json"
    assert optimize("plan", spec, "-o", plan)[0] == 0
    code, document = check(optimize, plan)
    assert (code, document["engine"]) == (0, "vllm")
    assert document["memory"]["weights"] == json.loads(plan.read_text())["chosen"]["memory"]["weights"]


def test_a_plan_is_checked_with_the_requests_it_was_made_for(optimize: Any, tmp_path: Path) -> None:
    """Pictures move the profile run, a shared prefix moves TTFT: both are the plan's, and the launch files' limit says the same."""
    spec, plan, model = tmp_path / "a.yaml", tmp_path / "a.plan.json", "Qwen/Qwen2.5-VL-7B-Instruct"
    spec.write_text(
        f"model: {model}\ntarget: {{ gpu: A100 80GB }}\nengine: vllm\npasses: {{ quantize: forbid, kv_cache: [auto] }}\n"
        "workload: { context: 32768, concurrency: 1, input_tokens: { mean: 1000, p95: 2000 }, output_tokens: 200, shared_prefix: 50%, "
        "images: { count: 2, tokens: 1000 } }\n"
    )
    assert optimize("plan", spec, "-o", plan)[0] == 0
    planned = json.loads(plan.read_text())["chosen"]
    for asked in (spec, plan):
        _, document = check(optimize, asked)
        assert document["memory"]["activations"] == planned["memory"]["activations"]
        assert document["speed"]["ttft_p95_ms"] == planned["speed"]["ttft_p95_ms"]
    limit = ("--limit-mm-per-prompt", '{"image": 2, "video": 0}', "--max-model-len", "32768")
    _, out, _ = optimize("check", "--gpu", "A100 80GB", "--json", "--", "vllm", "serve", model, *limit)
    assert json.loads(out)["memory"]["activations"] == planned["memory"]["activations"]


def test_how_sure_it_must_be_is_kept(optimize: Any) -> None:
    tight = ("--model", "llama-3.1-8b", "--gpu", "RTX 4090", "--context", "auto")
    assert check(optimize, *tight)[0] == 0
    code, document = check(optimize, *tight, "--min-confidence", 0.9)
    assert (code, document["fits"], document["meets"]) == (3, True, False)
    assert document["reasons"][0]["code"] == "not_sure_enough"
    assert (
        check(optimize, "--model", "llama-3.1-8b", "--gpu", "RTX 4090", "--context", 4096, "--min-confidence", 0.9)[0]
        == 0
    )


def test_goals_are_options(optimize: Any) -> None:
    model = ("--model", "llama-3.1-8b", "--gpu", "RTX 4090", "--context", 4096)
    assert check(optimize, *model, "--decode", 20, "--ttft", "800ms", "--max-perplexity-increase", "3%")[0] == 0
    code, document = check(optimize, *model, "--decode", "200 tok/s")
    assert (code, document["reasons"][0]["code"]) == (3, "decode_missed")
    assert check(optimize, *model, "--ttft", "soon")[0] == 2


def test_what_else_lives_on_the_card_is_kept_free(optimize: Any) -> None:
    model = ("--model", "llama-3.1-8b", "--gpu", "RTX 4090", "--context", 4096)
    free = check(optimize, *model)[1]["kv_cache"]["tokens"]["value"]
    assert check(optimize, *model, "--reserve", "4 GiB")[1]["kv_cache"]["tokens"]["value"] < free


def test_quiet_prints_nothing(optimize: Any) -> None:
    code, out, err = optimize("check", "--model", "llama-3.1-8b", "--gpu", "RTX 4090", "--context", 4096, "--quiet")
    assert (code, out, err) == (0, "", "")


@pytest.mark.parametrize(
    "architecture", ["BertModel", "XLMRobertaModel", "XLMRobertaForSequenceClassification", "ModernBertModel"]
)
def test_encoders_keep_no_cache(optimize: Any, tmp_path: Path, architecture: str) -> None:
    """bge-m3's shapes: 568 M weights in all, embedding included."""
    config = {
        "architectures": [architecture], "hidden_size": 1024, "intermediate_size": 4096, "max_position_embeddings": 8194,
        "num_attention_heads": 16, "num_hidden_layers": 24, "type_vocab_size": 1, "vocab_size": 250002, "torch_dtype": "float16",
        "model_type": "xlm-roberta",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, document = check(optimize, "--model", tmp_path, "--gpu", "L4")
    assert (code, document["kv_cache"]["bytes_per_sequence"], document["kv_cache"]["max_concurrency"]["value"]) == (
        0,
        0,
        None,
    )
    assert document["memory"]["weights"]["value"] == pytest.approx(2 * 568e6, rel=0.2)


def test_a_reward_model_is_answered(optimize: Any, tmp_path: Path) -> None:
    config = catalog.entry("meta-llama/Llama-3.1-8B-Instruct").config
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "architectures": ["LlamaForSequenceClassification"], "num_labels": 1})
    )
    code, document = check(optimize, "--model", tmp_path, "--gpu", "L4", "--context", "4k")
    assert code == 0
    assert document["memory"]["weights"]["value"] < 15 * GIB


def test_experts_stay_whole_under_another_spread(optimize: Any) -> None:
    """DeepSeek-V3's 671 GB of weights are 625 GiB over eight cards however they are cut."""
    command = ("--", "vllm", "serve", "deepseek-ai/DeepSeek-V3", "-tp", "8", "--enable-expert-parallel")
    for spread in ((), ("--tp", 4, "--pp", 2)):
        code, out, _ = optimize("check", "--json", "--gpu", "H100", "--gpus", 8, *spread, *command)
        document = json.loads(out)
        assert code == 3 and not document["fits"] and document["memory"]["weights"]["value"] > 70 * 2**30
    assert not any(each["options"].get("gpus") == 8 for each in document["remedies"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--gpu", "H100", "--", "vllm", "serve", "Qwen/Qwen3-8B", "-tp", "4"), "on 4 × H100 SXM with vllm: fits"),
        (("--gpu", "T4", "--", "vllm", "serve", "facebook/opt-125m", "--dtype", "bfloat16"), "does not start"),
        (
            ("--gpu", "H100", "--model", "Qwen/Qwen3-32B", "--context", "8k", "--concurrency", 64),
            "starts, does not hold",
        ),
        (("--gpu", "T4", "--model", "Qwen/Qwen3-8B"), "does not fit"),
    ],
)
def test_the_headline_says_how_many_cards_and_what_fails(optimize: Any, asked: tuple[object, ...], said: str) -> None:
    _, printed, _ = optimize("check", *asked)
    assert said in printed.splitlines()[0]


def test_a_shorter_context_is_a_remedy_only_where_it_is_of_use(optimize: Any) -> None:
    _, document = check(optimize, "--gpu", "H100", "--model", "Qwen/Qwen3-32B", "--context", "8k", "--concurrency", 64)
    contexts = [each["options"]["context"] for each in document["remedies"] if "context" in each["options"]]
    assert all(context >= 2048 for context in contexts)


def test_a_model_that_writes_nothing_is_said_once(optimize: Any) -> None:
    code, _, err = optimize("check", "--gpu", "L4", "--model", "BAAI/bge-m3")
    assert code == 2 and "writes no text" in err and err.count("not in the catalog") <= 1


def test_what_packages_beside_vllm_load_is_taken_as_launch_files_write_it(optimize: Any) -> None:
    words = (
        "vllm",
        "serve",
        "google/gemma-3-12b-it",
        "--quantization",
        "bitsandbytes",
        "--load-format",
        "bitsandbytes",
    )
    code, out, _ = optimize("check", "--gpu", "RTX 4090", "--json", "--", *words, "--max-model-len", "8k")
    assert code == 0 and any("vllm-bnb-plugin" in note for note in json.loads(out)["notes"])


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--max-lora-rank", "48", "write 64"), ("--max-lora-rank", "1000", "write 512"), ("--runner", "poolin", "Did you mean 'pooling'"),
        ("--load-format", "safetensor", "Did you mean 'safetensors'"), ("--convert", "embedding", "Did you mean 'embed'"),
        ("--mm-encoder-tp-mode", "dat", "Did you mean 'data'"), ("--lora-dtype", "float8", "vLLM 0.32.0 takes: auto, bfloat16, float16"),
    ],
)  # fmt: skip
def test_a_word_that_a_flag_does_not_take_is_refused_with_the_nearest(
    optimize: Any, flag: str, value: str, said: str
) -> None:
    command = ("check", "--gpu", "L4", "--", "vllm", "serve", "Qwen/Qwen3-8B", "--max-model-len", "4096")
    lora = ("--enable-lora",) if "lora" in flag else ()
    code, _, err = optimize(*command, *lora, flag, value)
    assert code == 2 and flag in err and said in err


def test_words_of_an_older_version_are_not_judged_by_a_newer_one_s_list(optimize: Any) -> None:
    def check(version: str) -> int:
        options = ("--gpu", "L4", "--engine-version", version, "--context", "4k")
        code, _, _ = optimize(
            "check", *options, "--", "vllm", "serve", "Qwen/Qwen3-8B", "--load-format", "tpu_streamer"
        )
        return int(code)

    assert (check("0.11"), check("0.32")) == (0, 2)


def test_a_model_that_names_no_context_is_held_to_none(optimize: Any) -> None:
    code, out, _ = optimize("check", "--model", "tiiuae/falcon-mamba-7b", "--gpu", "H100", "--context", "8192")
    assert code == 0 and "longest context 8,192" in out


def test_the_file_of_config_is_read_beside_options_too(optimize: Any, tmp_path: Path) -> None:
    (tmp_path / "vllm.yaml").write_text("max-model-len: 4096\ntensor-parallel-size: 2\n")
    options = ("check", "--model", "Qwen/Qwen3-8B", "--gpu", "H100", "--json", "--config")
    code, out, _ = optimize(*options, tmp_path / "vllm.yaml")
    assert code == 0 and json.loads(out)["context"] == 4096
    code, _, err = optimize(*options, tmp_path / "none.yaml")
    assert code == 2 and "none.yaml" in err


@pytest.mark.parametrize(
    ("said", "rate"), [("10", 10.0), ("10/s", 10.0), ("30/min", 0.5), ("2.5", 2.5), ("inf", float("inf"))]
)
def test_a_rate_is_read_as_specs_write_it(optimize: Any, said: str, rate: float) -> None:
    lengths = ("--input-tokens", 500, "--output-tokens", 100, "--num-prompts", 10)
    _, document = check(optimize, "--gpu", "H100", "--model", "Qwen/Qwen3-0.6B", *lengths, "--request-rate", said)
    assert float(document["load"]["request_rate"]) == rate


def test_lengths_of_requests_that_arrive_are_alike_where_that_is_said(optimize: Any) -> None:
    asked = ("--gpu", "H100", "--model", "Qwen/Qwen3-0.6B", "--request-rate", "8", "--num-prompts", 200)
    lengths = ("--input-tokens", 500, "--output-tokens", 100)
    _, chats = check(optimize, *asked, *lengths)
    _, alike = check(optimize, *asked, *lengths, "--random-range-ratio", 0)
    assert any("--random-range-ratio 0" in note for note in chats["notes"])
    assert not any("vary as chats'" in note for note in alike["notes"])
    spread = [each["speed"]["e2e_p99_ms"]["value"] / each["speed"]["e2e_p50_ms"]["value"] for each in (chats, alike)]
    assert spread[0] > 3 > 1.3 > spread[1]
    code, _, err = optimize("check", *asked, "--random-range-ratio", 0)
    assert code == 2 and "--input-tokens" in err


def test_a_load_that_grows_is_told_and_is_another_one(optimize: Any) -> None:
    asked = (
        "--gpu",
        "H100",
        "--model",
        "Qwen/Qwen3-0.6B",
        "--input-tokens",
        2000,
        "--output-tokens",
        100,
        "--num-prompts",
        64,
    )
    ramp = ("--ramp-up-strategy", "exponential", "--ramp-up-start-rps", 1, "--ramp-up-end-rps", 64)
    waiting = ("--max-concurrency", 16)
    told = {
        name: check(optimize, *asked, *load)[1]
        for name, load in {
            "rate": ("--request-rate", 64), "ramp": ramp, "clients": waiting,
            "one by one": (*waiting, "--concurrency-ramp-duration", 8),
        }.items()
    }  # fmt: skip
    first = {name: each["speed"]["ttft_ms"]["value"] for name, each in told.items()}
    assert first["ramp"] < first["rate"] and first["one by one"] < first["clients"]
    capped = check(optimize, *asked, *ramp, "--max-concurrency", 1)[1]["speed"]["tpot_ms"]["value"]
    assert capped < told["ramp"]["speed"]["tpot_ms"]["value"], (
        "what may be unanswered at once is of a rate that grows, too"
    )
    assert "the rate grows exponentially from 1 to 64 requests a second" in told["ramp"]["notes"]
    assert "clients come one after the other, the last after 8 s" in told["one by one"]["notes"]


def test_a_rate_that_grows_beyond_what_is_served_is_refused_unless_it_is_a_run_of_so_many(optimize: Any) -> None:
    asked = (
        "--gpu",
        "L4",
        "--model",
        "Qwen/Qwen3-8B",
        "--context",
        4096,
        "--input-tokens",
        1000,
        "--output-tokens",
        200,
    )
    ramp = ("--ramp-up-strategy", "linear", "--ramp-up-start-rps", 0.5, "--ramp-up-end-rps", 30)
    code, document = check(optimize, *asked, *ramp)
    assert code == 3 and [reason["code"] for reason in document["reasons"]] == ["rate_missed"]
    assert check(optimize, *asked, *ramp, "--num-prompts", 100)[0] == 0


@pytest.mark.parametrize("gpu", ["RTX 3090", "{ name: RTX 3090, memory_gib: 20 }"])
def test_a_check_of_a_spec_has_the_bridge_that_it_names(optimize: Any, tmp_path: Path, gpu: str) -> None:
    file, tpot = tmp_path / "s.yaml", {}
    for bridge in ("true", "false"):
        file.write_text(f"model: Qwen/Qwen2.5-7B-Instruct\ntarget: {{ gpu: {gpu}, count: 2, bridge: {bridge} }}\n")
        tpot[bridge] = check(optimize, file, "--tp", 2)[1]["speed"]["tpot_ms"]["value"]
    assert tpot["true"] < tpot["false"]


@pytest.mark.parametrize("said", ["0", "-1", "fast", "10 km"])
def test_what_is_no_rate_says_how_to_write_one(optimize: Any, said: str) -> None:
    code, _, err = optimize("check", "--gpu", "H100", "--model", "Qwen/Qwen3-0.6B", "--request-rate", said)
    assert code == 2 and "4/s" in err


@pytest.mark.parametrize(("said", "tokens"), [("128k", 131072), ("1m", 1 << 20), ("1M", 1 << 20)])
def test_tokens_are_binary_everywhere(optimize: Any, said: str, tokens: int) -> None:
    from planner.spec.units import as_typed_tokens

    _, document = check(optimize, "--gpu", "H100", "--model", "Llama-3.1-8B-Instruct", "--context", said)
    assert document["context"] == as_typed_tokens(said) == tokens


def test_figures_of_speed_say_which_requests_they_are_for(optimize: Any) -> None:
    asked = ("--context", "4k", "--input-tokens", 2000, "--output-tokens", 400, "--concurrency", 4)
    _, out, _ = optimize("check", "--gpu", "H100", "--model", "Qwen/Qwen3-8B", *asked)
    assert "tok/s (calibrated) for 2,000 tokens in, 400 out, 4 clients" in " ".join(
        out.split()
    )  # lines wrap as wide as the terminal


def test_a_model_that_embeds_decodes_nothing(optimize: Any) -> None:
    _, out, _ = optimize("check", "--gpu", "L4", "--model", "Qwen/Qwen3-Embedding-0.6B")
    assert "a text of 512 tokens is embedded in" in out and "tok/s" not in out


def test_a_plan_is_held_against_its_own_goals_as_it_was_judged(optimize: Any, tmp_path: Path) -> None:
    spec, plan = tmp_path / "a.yaml", tmp_path / "a.plan.json"
    goals = "goals: { decode: 10 tok/s, quality: { max_perplexity_increase: 5% } }"
    spec.write_text(f"model: Llama-3.1-8B-Instruct\ntarget: {{ gpu: L4 }}\nworkload: {{ context: 8k }}\n{goals}\n")
    code, _, err = optimize("plan", str(spec), "-o", str(plan))
    assert code == 0, err
    code, document = check(optimize, str(plan))
    assert code == 0 and [goal["name"] for goal in document["goals"]] == ["decode", "perplexity"] and document["meets"]


def test_a_context_beyond_the_model_is_refused_for_certain(optimize: Any) -> None:
    code, document = check(optimize, "--gpu", "H100", "--model", "Qwen/Qwen3-0.6B", "--context", "128k")
    assert code == 3 and document["confidence"] == 1.0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--speculative-config", '{"method": "mtp", "num_speculative_token": 1}'), "'num_speculative_tokens'"),
        (("--speculative-config", '{"method": "mtpp", "num_speculative_tokens": 1}'), "'mtp'"),
        (("--speculative-config", '{"method": "mtp", "num_speculative_tokens": "three"}'), "an integer is expected"),
        (("--speculative-config", "mtp"), "no JSON object"),
        (("--compilation-config", '{"cudagraph_mode": "FULLY"}'), "'FULL'"),
        (("--compilation-config", '{"pass_config": {"fuse_norm_quan": true}}'), "'fuse_norm_quant'"),
        (("--compilation-config.pass_config.fuse_norm_quan", "true"), "'fuse_norm_quant'"),
        (("--limit-mm-per-prompt", '{"image": {"cout": 2}}'), "'count'"),
        (("--kv-transfer-config", '{"kv_role": "both"}'), "'kv_both'"),
        (("--hf-overrides", '{"num_hidden_layers": "two"}'), "a number"),
    ],
)
def test_what_no_configuration_of_the_engine_has_is_refused(optimize: Any, flags: tuple[str, ...], said: str) -> None:
    code, out, _ = optimize("check", "--gpu", "H100", "--json", "--", "vllm", "serve", "Qwen/Qwen3-8B", *flags)
    error = json.loads(out)["error"]
    assert code == 2 and said in json.dumps(error)


def test_keys_come_and_go_with_versions(optimize: Any) -> None:
    asked = (
        "--gpu",
        "H100",
        "--model",
        "Qwen/Qwen3-8B",
        "--context",
        8192,
        "--compilation-config",
        '{"use_inductor": true}',
    )
    assert check(optimize, *asked, "--engine-version", "0.10.2")[0] == 0
    code, document = check(optimize, *asked, "--engine-version", "0.20.0")
    assert code == 3 and document["reasons"][0]["code"] == "flag_not_in_version"
    _, document = check(optimize, *asked)
    assert any("use_inductor" in note and "0.11.2" in note for note in document["notes"])


def test_a_key_that_a_config_lacks_is_told(optimize: Any) -> None:
    pasted = ("vllm", "serve", "Qwen/Qwen3-8B", "--hf-overrides", '{"max_postion_embeddings": 4096}')
    _, out, _ = optimize("check", "--gpu", "H100", "--json", "--", *pasted)
    assert any("max_position_embeddings" in note for note in json.loads(out)["notes"])


def test_an_assistant_is_a_head_of_its_model(optimize: Any) -> None:
    drafting = ("--speculative-config", '{"model": "google/gemma-4-31B-it-assistant", "num_speculative_tokens": 4}')
    code, out, _ = optimize(
        "check", "--gpu", "H200", "--json", "--", "vllm", "serve", "google/gemma-4-31B-it", *drafting
    )
    assert code == 0 and any("assumed" in note for note in json.loads(out)["notes"])


def test_what_a_command_says_of_a_checkpoint_known_by_its_name_alone_holds(optimize: Any) -> None:
    serve = ("vllm", "serve", "stepfun-ai/Step-3.7-Flash-NVFP4", "-tp", "2", "--max-model-len", "8k", "--quantization")
    code, out, _ = optimize("check", "--gpu", "H200", "--json", "--", *serve, "modelopt")
    assert code == 0 and any("usually means" in note for note in json.loads(out)["notes"])
    assert optimize("check", "--gpu", "H200", "--", *serve, "ascend")[0] == 3


def test_a_folder_that_tells_nothing_is_asked_back_with_what_the_server_calls_it(optimize: Any) -> None:
    command = ("vllm", "serve", "/model-cache/", "--served-model-name", "Qwen/Qwen3-8B", "--max-model-len", "8k")
    code, _, err = optimize("check", "--gpu", "L40S", "--", *command)
    assert code == 2 and "--model Qwen/Qwen3-8B before the command" in " ".join(err.split())
    assert optimize("check", "--gpu", "L40S", "--model", "Qwen/Qwen3-8B", "--", *command)[0] == 0


def test_a_gguf_file_is_served_by_its_name(optimize: Any) -> None:
    """As `vllm serve` takes it (vllm-project/vllm#29137), and as people had to before (#8618, #17661)."""
    for words, version, code in (
        (("unsloth/Qwen3-0.6B-GGUF:Q4_K_M",), "0.12.0", 0),
        (("unsloth/Qwen3-0.6B-GGUF:Q4_K_M",), "0.10.2", 3),
        (
            ("/models/tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf", "--tokenizer", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
            "0.8.4",
            0,
        ),
        (("/models/model-Q4_K_M.gguf", "--tokenizer", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"), "0.33.0", 0),
    ):
        asked = ("check", "--json", "--gpu", "RTX 4090", "--engine-version", version)
        answered, out, _ = optimize(*asked, "--", "vllm", "serve", *words, "--quantization", "gguf")
        assert answered == code, (words, version, out)
        document = json.loads(out)
        assert document["memory"]["weights"]["basis"] == "assumed"
        assert document["memory"]["weights"]["value"] < 0.75 * (1 << 30)


@pytest.mark.parametrize(
    ("version", "flags", "code", "said"),
    [
        # zai-org/GLM-4.5#54: "invalid choice: 'glm45'"
        ("0.10.0", ("--tool-call-parser", "glm45", "--enable-auto-tool-choice"), 3, "vLLM 0.10.0 has no --tool-call-parser glm45"),
        ("0.33.0", ("--tool-call-parser", "glm45", "--reasoning-parser=glm45"), 0, ""),
        (None, ("--tool-call-parser", "qwen3coder"), 2, "Did you mean 'qwen3_coder'"),
        (None, ("--reasoning-parser", "qwen4"), 2, "Did you mean 'qwen3'"),
        (None, ("--tool-call-parser", "mine", "--tool-parser-plugin", "mine.py"), 0, ""),
    ],
)  # fmt: skip
def test_a_parser_that_the_version_has_not_is_told(
    optimize: Any, version: str | None, flags: tuple[str, ...], code: int, said: str
) -> None:
    named = () if version is None else ("--engine-version", version)
    answered, out, err = optimize(
        "check", "--gpu", "H100", *named, "--", "vllm", "serve", "Qwen/Qwen3-8B", "--max-model-len=8k", *flags
    )
    assert answered == code and said in " ".join(f"{out} {err}".split())


def test_what_runs_at_once_is_no_more_than_the_engine_runs(optimize: Any) -> None:
    """Below Ampere ExLlamaV2 runs one request: the cache's room is not told as what is served."""
    asked = "--engine exllamav2 --weights exl2-4 --context 4096 --concurrency 3 --input-tokens 500 --output-tokens 200"
    words = ["--model", "meta-llama/Llama-2-7b-hf", *asked.split()]
    (_, old), (_, new) = (check(optimize, *words, "--gpu", gpu) for gpu in ("T4", "RTX 3090"))
    assert old["most_at_once"] == 1 < old["kv_cache"]["max_concurrency"]["value"]
    assert "most_at_once" not in new
    _, told, _ = optimize("check", *words, "--gpu", "T4")
    assert "of which the engine runs 1 at once, 2 of 3 wait" in " ".join(told.split())
