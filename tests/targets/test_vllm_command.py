"""A pasted server's command is read as vLLM's own parser reads it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from passes.errors import InputError
from targets.engines.vllm.arguments.asked import COUNTED, UNCOUNTED, asked
from targets.engines.vllm.arguments.command import ServeCommand, read_command, read_flags
from targets.engines.vllm.arguments.table import find_flag, flag_names
from targets.numbers import whole_number


def read(text: str) -> ServeCommand:
    return read_command(shlex.split(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [("32768", 32768), ("32k", 32000), ("32K", 32768), ("1.5k", 1500), ("1.5K", 1536), ("10G", 10 << 30), ("32_768", 32768)],
)  # fmt: skip
def test_numbers_are_vllms(text: str, value: int) -> None:
    assert whole_number(text, "--max-model-len") == value


@pytest.mark.parametrize("text", ["", "k", "-5", "8kk", "1.0001k", "eight"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no whole number"):
        whole_number(text, "--max-model-len")


@pytest.mark.parametrize("value", ['{"text_config": {}}', '["a"]'])
def test_keys_and_lists_name_no_model(value: str) -> None:
    with pytest.raises(InputError, match="--model names a model, found"):
        _ = read_command(["vllm", "serve", "--model", value]).model


def test_spellings_of_a_flag_mean_the_same() -> None:
    for text in (
        "vllm serve m --tensor-parallel-size 2", "vllm serve m --tensor_parallel_size=2", "vllm serve m -tp 2", "vllm serve m -tp=2",
        "vllm serve m --tensor-parallel 2", "python -m vllm.entrypoints.openai.api_server --model m -tp 2",
        "docker run --gpus all -p 8000:8000 vllm/vllm-openai:v0.11.0 --model m -tp 2", "env X=1 /opt/bin/vllm serve m -tp 2",
        "bash -c 'vllm serve m -tp 2'", "docker run --entrypoint bash vllm/vllm-openai:v0.11.0 -c 'vllm serve m -tp 2'",
    ):  # fmt: skip
        command = read(text)
        assert (command.model, command.flags["tensor-parallel-size"]) == ("m", "2"), text


def test_a_container_tells_version_and_cards() -> None:
    command = read("docker run --gpus '\"device=0,1\"' -e HF_TOKEN=x vllm/vllm-openai:v0.11.0 --model m")
    assert (command.version, command.cards) == ("0.11.0", 2)
    assert "names no version" in read("docker run vllm/vllm-openai:latest --model m").notes[0]


def test_variables_tell_cards() -> None:
    assert read("CUDA_VISIBLE_DEVICES=0,3 vllm serve m").cards == 2


def test_json_and_dotted_keys_are_one() -> None:
    whole = read("""vllm serve m --speculative-config '{"method": "mtp", "num_speculative_tokens": 2}'""")
    dotted = read("vllm serve m --speculative-config.method mtp --speculative-config.num_speculative_tokens 2")
    assert whole.flags == dotted.flags


def test_short_forms_of_levels() -> None:
    assert asked(read("vllm serve m -O0")).settings.features.graphs is False
    assert asked(read("vllm serve m -O3 -cc.cudagraph_mode=NONE")).settings.features.graphs is False
    assert asked(read("vllm serve m -q fp8")).weights == "fp8-online"


def test_switches_are_switched_off() -> None:
    assert asked(read("vllm serve m --no-enable-prefix-caching")).settings.features.prefix_caching is False
    assert asked(read("vllm serve m --no-enable-chunked-prefill")).settings.features.whole_prompts
    assert asked(read("vllm serve m")).settings.features.prefix_caching is None


def test_an_unknown_flag_names_the_nearest() -> None:
    with pytest.raises(InputError, match="--max-model-len"):
        read("vllm serve m --max-model-lenght 32k")


@pytest.mark.parametrize(
    "text", ["vllm bench serve", "python train.py", "vllm serve m n", "vllm serve m --max-model-len", "ls"]
)
def test_what_starts_no_server_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        asked(read(text))


def test_a_flag_of_another_version_stops_the_server() -> None:
    refused = asked(read("docker run vllm/vllm-openai:v0.11.0 --model m --language-model-only")).reasons
    assert [reason.code for reason in refused] == ["flag_not_in_version"]
    assert not asked(read("docker run vllm/vllm-openai:v0.17.0 --model m --language-model-only")).reasons
    assert [r.code for r in asked(read("vllm serve m --swap-space 4"), "0.33").reasons] == ["flag_not_in_version"]


def test_a_value_that_went_is_told_as_a_flag_that_went_is() -> None:
    """A note where no version is named, refused where the version has it no more, nothing where it had; what never was is a mistake."""
    for text, went in (("--swap-space 4", "after vLLM 0.17.1"), ("--mamba-cache-mode all", "before vLLM 0.32.0")):
        free = asked(read(f"vllm serve m {text}"))
        assert not free.reasons and any(f"went {went}: newer ones stop at it" in note for note in free.notes)
        for version in ("0.32", "0.32.0"):  # the list is the first patch's
            refused = asked(read(f"vllm serve m {text}"), version).reasons
            assert [reason.code for reason in refused] == ["flag_not_in_version"]
        named = asked(read(f"vllm serve m {text}"), "0.16")
        assert not named.reasons and not any("went" in note for note in named.notes)
    for version in (None, "0.32", "0.32.0"):
        with pytest.raises(InputError, match="'align'"):
            asked(read("vllm serve m --mamba-cache-mode aling"), version)


def test_what_is_not_counted_is_said() -> None:
    notes = asked(read("vllm serve m --port 8000 --attention-backend FLASHINFER")).notes
    assert any("--port" in note and "without effect" in note for note in notes)
    assert any("--attention-backend" in note and "kernels" in note for note in notes)
    notes = asked(
        read(
            "vllm serve m --mm-processor-kwargs '{\"max_pixels\": 1003520}' --watermark 0.01 --no-enable-chunked-prefill"
        )
    ).notes
    assert [any(f"--{name}: " in note for note in notes) for name in ("mm-processor-kwargs", "watermark")] == [
        True,
        True,
    ]
    assert not any("without effect" in note for note in notes)


def test_every_flag_that_is_read_is_one_of_vllms() -> None:
    assert set(flag_names()) >= COUNTED | set(UNCOUNTED)
    assert len(flag_names()) > 350
    assert not COUNTED & set(UNCOUNTED)


def test_flags_alone_are_read_without_a_command() -> None:
    assert asked(read_flags(["--enable-lora", "--max_lora_rank", "64"])).settings.features.adapters is not None
    assert find_flag("--max_lora_rank")[0].name == "max-lora-rank"


_FILE = """\
model: Qwen/Qwen3-8B  # the head says why
max-model-len: 8k
tensor_parallel_size: 2
enforce-eager: true
enable-prefix-caching: false
served-model-name: [a, b]
cuda-graph-sizes: []
speculative-config: {method: ngram, num_speculative_tokens: 3}
"""


def test_a_config_file_is_read_as_the_server_reads_it(tmp_path: Path) -> None:
    """The command line holds over it; of it, what is not said there."""
    (tmp_path / "vllm.yaml").write_text(_FILE)
    command = read(f"vllm serve --config {tmp_path}/vllm.yaml --max-model-len 4k")
    assert command.model == "Qwen/Qwen3-8B"
    told = asked(command)
    assert (told.context, told.settings.parallel.tp, told.settings.enforce_eager) == (4000, 2, True)
    assert told.settings.features.prefix_caching is False and told.settings.features.drafting is not None
    assert command.flags["served-model-name"] == ["a", "b"] and "cuda-graph-sizes" not in command.flags


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "max-model-len: 1\nmax-num-sequences: 8\n", "a.yaml:2:1: unknown flag of vLLM '--max-num-sequences'"),
        ("a.yml", "- max-model-len\n", "holds no keys"), ("a.json", "{}", "takes a .yaml or .yml file"),
        ("a.yaml", "a: [", "a.yaml:1:5: not YAML"),
        ("a.yaml", "[" * 5000, "nested too deeply"), ("a.yaml", "a: &x [1]\nb: *x\n", "a.yaml:1:4: an alias (*) is not read"),
    ],
)  # fmt: skip
def test_a_wrong_config_file_is_refused_before_anything_starts(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as refused:
        read(f"vllm serve Qwen/Qwen3-8B --config {tmp_path / name}")
    assert said in str(refused.value)
    with pytest.raises(InputError, match="cannot be read"):
        read("vllm serve Qwen/Qwen3-8B --config nowhere.yaml")
    inside = read("docker run vllm/vllm-openai:v0.11.0 --model Qwen/Qwen3-8B --config /etc/vllm.yaml")
    assert any("lies in the container" in note for note in inside.notes)


@pytest.mark.parametrize("flag", ["--hf-overrides", "--disable-log-requests=", "--hf-overrides.rope_scaling"])
def test_json_nested_too_deeply_is_no_flag(flag: str) -> None:
    """Behind dots a value that is no JSON is text."""
    deep = "".join(('{"a":' * 100_000, "1", "}" * 100_000))
    words = ["vllm", "serve", "Qwen/Qwen3-8B", *((f"{flag}{deep}",) if flag.endswith("=") else (flag, deep))]
    with pytest.raises(InputError, match="nested too deeply"):
        read_command(words)


@pytest.mark.parametrize(
    "text",
    [
        "uv run --with vllm vllm serve Qwen/Qwen3-8B --max-model-len 8k", "docker exec -it box vllm serve Qwen/Qwen3-8B --max-model-len 8k",
        "docker compose exec -e CUDA_VISIBLE_DEVICES=0 llm vllm serve Qwen/Qwen3-8B --max-model-len=8k",
        "bash -lc 'source venv/bin/activate && export X=1; vllm serve Qwen/Qwen3-8B --max-model-len 8k 2>&1 | tee log'",
        "srun apptainer exec --nv vllm.sif vllm serve Qwen/Qwen3-8B --max-model-len 8k",
        "docker run --rm nvcr.io/nvidia/vllm:25.10-py3 vllm serve Qwen/Qwen3-8B --max-model-len 8k",
        "bash -c 'pip install vllm && vllm serve Qwen/Qwen3-8B --max-model-len 8k'",
    ],
)  # fmt: skip
def test_a_server_is_found_behind_what_runs_it(text: str) -> None:
    read = read_command(shlex.split(text))
    assert (read.model, read.flags, read.version) == ("Qwen/Qwen3-8B", {"max-model-len": "8k"}, None)


def test_a_sign_within_a_word_ends_neither_it_nor_the_command() -> None:
    for words in (
        ["vllm serve Qwen/Qwen3-8B --api-key a#b --max-model-len 8k"],
        ["bash", "-c", "vllm serve Qwen/Qwen3-8B --api-key a#b --max-model-len 8k"],
    ):
        assert read_command(words).flags == {"api-key": ["a#b"], "max-model-len": "8k"}
