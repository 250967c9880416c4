"""Names resolve as people write them; what is unknown is answered with the nearest names."""

from __future__ import annotations

import pytest

from passes.errors import InputError
from passes.ir import catalog, names
from passes.ir.architectures import build_ir
from passes.ir.names import Published, begun_by, convention, find, published_of
from passes.ir.quant_config.read import quantized
from passes.ir.sources import described, open_model
from passes.quantize.format_names import pass_named
from planner.check import check
from targets.engines.engine import Parallel, Settings
from targets.quantity import Basis

SPELLINGS = {
    "meta-llama/Llama-3.3-70B-Instruct": "meta-llama/Llama-3.3-70B-Instruct",
    "llama-3.3-70b-instruct": "meta-llama/Llama-3.3-70B-Instruct",
    "Llama2-7B": "meta-llama/Llama-2-7b-hf",
    "Llama-2 7B": "meta-llama/Llama-2-7b-hf",
    "Llama-3-8B": "meta-llama/Meta-Llama-3-8B",
    "meta-llama/Llama-3.1-70B": "meta-llama/Llama-3.1-70B-Instruct",
    "Mistral 7B Instruct": "mistralai/Mistral-7B-Instruct-v0.2",
    "OPT-6.7B": "facebook/opt-6.7b",
    "qwen2.5-7b-instruct": "Qwen/Qwen2.5-7B-Instruct",
    "Qwen2.5-7B-Instruct": "Qwen/Qwen2.5-7B-Instruct",
    "QWEN3_30B_A3B": "Qwen/Qwen3-30B-A3B",
    "redhatai/llama-3.3-70b-instruct-quantized.W8A8": "RedHatAI/Llama-3.3-70B-Instruct-quantized.w8a8",
    "gpt-oss 20b": "openai/gpt-oss-20b",
    "Command-R": "CohereForAI/c4ai-command-r-v01",
    "Command-R+": "CohereForAI/c4ai-command-r-plus",
    "Llama 3.2:3b": "meta-llama/Llama-3.2-3B-Instruct",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_name_means_one_model(name: str) -> None:
    match = find(name)
    assert match is not None
    assert match.id == SPELLINGS[name]


def test_another_variant_of_a_model_is_said() -> None:
    assert any("shapes of" in note for note in open_model("Llama-3.1-8B").ir.notes)
    assert not any("shapes of" in note for note in open_model("Llama-3.1-8B-Instruct").ir.notes)


def test_quantized_repositories_are_not_taken_for_the_dense_model() -> None:
    assert open_model("Qwen2.5-14B-Instruct-AWQ").ir.quant_method == "awq"
    assert open_model("Qwen2.5-14B-Instruct").ir.quant_method is None


@pytest.mark.parametrize(
    ("name", "method", "label"),
    [("Qwen3-4B-AWQ", "awq", "awq-4-g128"), ("Qwen/Qwen2.5-3B-Instruct-GPTQ-Int8", "gptq", "gptq-8-g128"),
     ("Qwen/Qwen3-4B-FP8", "fp8", "fp8-block"), ("someone/Llama-3.1-8B-Instruct-FP8", "compressed-tensors", "fp8"),
     ("nvidia/Llama-3.1-8B-Instruct-FP8", "modelopt", "fp8-static"), ("someone/Qwen3-4B-GPTQ-8bit", "gptq", "gptq-8-g128"),
     ("RedHatAI/Qwen3-4B-quantized.w8a16", "compressed-tensors", "w8a16-channel"),
     ("cpatonn/Qwen3-4B-AWQ-4bit", "compressed-tensors", "w4a16-g32")],
)  # fmt: skip
def test_a_quantized_name_of_a_known_model_says_what_it_assumes(name: str, method: str, label: str) -> None:
    ir = open_model(name).ir
    assert ir.quant_method == method
    assert {linear.storage.label for linear in ir.decoder.block(0).linears} == {label}
    assert any("assumed stored as" in note for note in ir.notes)


@pytest.mark.parametrize(
    "name", ["unsloth/gpt-oss-20b-BF16", "unsloth/DeepSeek-V3-bf16", "unsloth/Kimi-K2-Instruct-BF16"]
)
def test_a_copy_in_16_bits_of_a_model_that_was_released_in_fewer_is_as_large_as_that(name: str) -> None:
    ir = open_model(name).ir
    assert (ir.name, ir.quant_method) == (name, None)
    assert {tensor.dtype for tensor in ir.tensors()} <= {"BF16", "F32"}
    assert any("all of them in 16 bits as its name says" in note for note in ir.notes)


@pytest.mark.parametrize(
    ("name", "base"),
    [("openai/gpt-oss-safeguard-20b", "openai/gpt-oss-20b"), ("NousResearch/Hermes-4-70B-FP8", "meta-llama/Llama-3.1-70B-Instruct")],
)  # fmt: skip
def test_a_model_trained_on_from_another_has_its_shapes_and_says_so(name: str, base: str) -> None:
    ir, known = open_model(name).ir, open_model(base).ir
    assert ir.name == name and any(base in note for note in ir.notes)
    assert (len(ir.decoder.layers), ir.hidden_size, ir.vocab_size) == (
        len(known.decoder.layers),
        known.hidden_size,
        known.vocab_size,
    )


def test_the_words_that_change_nothing_of_a_model_in_16_bits_still_change_nothing() -> None:
    assert open_model("unsloth/Llama-3.1-8B-Instruct-bf16").ir == open_model("Llama-3.1-8B-Instruct").ir


@pytest.mark.parametrize(
    ("name", "says"),
    [("unsloth/Qwen3.5-9B-GGUF", "give its path, or Qwen/Qwen3.5-9B with `--weights`"), ("someone/Foo-7B-GGUF", "give its path.")],
)  # fmt: skip
def test_a_repository_of_gguf_files_is_named_as_one(name: str, says: str) -> None:
    with pytest.raises(InputError, match="a repository of GGUF files") as caught:
        open_model(name)
    assert says in str(caught.value.remedy)


@pytest.mark.parametrize(
    "path",
    [
        "/root/.cache/huggingface/hub/models--meta-llama--Llama-3.1-8B-Instruct/snapshots/0e9e39f249a16976918f6564b8830bc894c89659",
        "/data/meta-llama/Llama-3.1-8B-Instruct/", "/data/Llama-3.1-8B-Instruct",
    ],
)  # fmt: skip
def test_a_folder_of_another_machine_goes_by_its_name(path: str) -> None:
    assert open_model(path).ir.hidden_size == 4096


def test_layers_that_draft_are_no_other_model() -> None:
    assert open_model("/cache/shawnw3i/Qwen3.6-27B-AWQ-MTP").ir.quant_method == "awq"


def test_an_unknown_folder_is_told_how_to_name_what_it_holds() -> None:
    with pytest.raises(InputError) as caught:
        open_model("/data/pretrained/OpenGVLab/InternVL3-999B/")
    assert "--model OpenGVLab/InternVL3-999B before the command" in str(caught.value.remedy)


def test_a_quantized_name_is_answered_as_it_was_asked_and_its_weights_are_assumed() -> None:
    answer = check("zai-org/GLM-4.5-FP8", "H200 SXM", settings=Settings(parallel=Parallel(tp=8)))
    assert answer.fits
    weights = answer.document.memory.weights
    assert answer.document.model == "zai-org/GLM-4.5-FP8"
    assert weights.basis is Basis.ASSUMED
    assert weights.high > 1.09 * weights.value
    assert any("assumed stored as" in note for note in answer.document.notes)


def test_experts_alone_are_quantized_where_the_publisher_does_so() -> None:
    layer = open_model("Qwen/Qwen3.5-397B-A17B-GPTQ-Int4").ir.decoder.block(3)
    assert {linear.copies > 1 for linear in layer.linears if linear.storage.is_quantized} == {True}


def test_what_is_recalled_and_unchecked_is_said() -> None:
    ir = open_model("meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8").ir
    assert ir.spread
    assert any("recalled and unchecked" in note for note in ir.notes)
    assert open_model("Qwen/Qwen3-32B-FP8").ir.spread == 0


def test_an_unknown_name_is_answered_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"Did you mean .*Qwen2\.5-7B") as error:
        open_model("Qwen2.5-7B-Instrct-X")
    assert error.value.exit_code == 2
    assert error.value.remedy


def test_a_file_that_is_no_model_says_what_would_be(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"a folder with config\.json"):
        open_model(path)


def test_every_published_checkpoint_is_stored_as_one_table_says() -> None:
    usual = [(row, convention(row.id, row.of)) for row in catalog.published()]
    assert usual and [row.id for row, told in usual if told is None] == []
    named = {row.id: row.weights or told["weights"] for row, told in usual if told is not None}
    assert {name: weights for name, weights in named.items() if pass_named(weights) is None} == {}


def test_a_published_checkpoint_whose_source_is_not_known_names_it() -> None:
    with pytest.raises(
        InputError,
        match=r"dots-studio/dots3-note-prev-fp8 was made of dots-studio/dots3-note-prev, whose shapes are not known",
    ):
        open_model("dots-studio/dots3-note-prev-fp8")


def test_a_short_name_of_several_models_is_asked_back_their_maker_s_first() -> None:
    assert find("llama3") is None and begun_by("llama3")[-1] == "shenzhi-wang/Llama3-8B-Chinese-Chat"
    with pytest.raises(InputError, match="'llama3' may be meta-llama/Meta-Llama-3-70B"):
        open_model("llama3")
    assert begun_by("smollm3") == ("HuggingFaceTB/SmolLM3-3B",) and not begun_by("")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("deepseek-ai/DeepSeek-V2", "DeepSeek-V2-Lite"), ("DeepSeek-Coder-V2-Instruct", "DeepSeek-Coder-V2-Lite"),
        ("devstral", "Devstral-Small"), ("step-3.5", "Step-3.5-Flash"),
    ],
)  # fmt: skip
def test_a_model_whose_smaller_sibling_alone_is_known_is_not_read_as_that_one(name: str, nearest: str) -> None:
    assert find(name) is None
    with pytest.raises(InputError, match=nearest):
        open_model(name)


@pytest.mark.parametrize("name", ["BAAI/bge-m3", "intfloat/e5-large-v2", "openai/whisper-large-v3"])
def test_a_model_that_writes_nothing_is_told_so_by_its_name(name: str) -> None:
    with pytest.raises(InputError, match="writes no text"):
        open_model(name)


@pytest.mark.parametrize(
    "made",
    [
        made
        for row in catalog.published()
        if row.id in catalog.ids() and "quantization_config" in catalog.entry(row.id).config
        for made in published_of(row.of)
        if made.id == row.id and made.weights.startswith(("awq", "gptq", "w4a16"))
    ],
    ids=lambda made: made.id,
)
def test_a_published_checkpoint_has_the_bits_and_groups_of_its_own_config(made: Published) -> None:
    stored = described(made.id)
    assert stored is not None
    forms = {lin.storage for block, _ in stored.decoder.counts for lin in block.linears if lin.storage.quant_method}
    usual = pass_named(made.weights)
    assert usual is not None
    assert {(form.bits, form.group_size) for form in forms} == {(usual.storage.bits, usual.storage.group_size)}


def _file_entries() -> list[str]:
    """Quantized models of the catalog whose config is a copy of the file, which says what is stored how."""
    return [
        name
        for name in catalog.ids()
        if (entry := catalog.entry(name)).stored_quantized
        and entry.provenance["confidence"] == "file"
        and entry.config.get("quantization_config", {}).get("quant_algo")
        != "MIXED_PRECISION"  # their lists of layers were cut
        and set(names._words(names._bare(name))) & names._stored()
    ]


@pytest.mark.parametrize("name", _file_entries())
def test_a_publisher_stores_as_its_convention_says(name: str) -> None:
    """What a name's convention leaves dense, and how wide, comes within its spread to what the file itself says."""
    row, entry = names.convention(name, name), catalog.entry(name)
    assert row is not None
    said = quantized(build_ir(entry.config, name))
    usual = quantized(build_ir(entry.dense_config | {"quantization_config": row["settings"]}, name))
    sizes = [sum(tensor.bytes for tensor in ir.tensors()) for ir in (usual, said)]
    assert sizes[0] == pytest.approx(sizes[1], rel=row["spread"])
