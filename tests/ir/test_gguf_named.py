"""GGUF files that only their names tell of, as `vllm serve` takes them."""

from __future__ import annotations

import pytest

from passes.errors import InputError
from passes.ir.sources import open_model
from planner.check import check
from targets.engines.engine import Settings
from targets.engines.features import Features
from targets.engines.vllm.rules.fused import padded

GIB = 1 << 30


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        # Sizes of files as their repositories on the Hub list them.
        ("unsloth/Qwen3-0.6B-GGUF:Q4_K_M", 0.397), ("unsloth/Qwen3-0.6B-GGUF:Q8_0", 0.639),
        ("bartowski/Meta-Llama-3-8B-Instruct-GGUF:Q4_K_M", 4.92),
        ("bartowski/Meta-Llama-3-8B-Instruct-GGUF:Q5_K_M", 5.73), ("bartowski/Meta-Llama-3-8B-Instruct-GGUF:Q2_K", 3.18),
        ("bartowski/Meta-Llama-3-8B-Instruct-GGUF:Q3_K_M", 4.02), ("bartowski/Meta-Llama-3-8B-Instruct-GGUF:IQ4_XS", 4.45),
        ("NoelJacob/Meta-Llama-3-8B-Instruct-Q4_K_M-GGUF", 4.92), ("TheBloke/Mistral-7B-Instruct-v0.1-GGUF:Q4_K_S", 4.14),
        ("bartowski/Llama-3.3-70B-Instruct-GGUF:Q4_K_M", 42.52), ("unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M", 18.6),
    ],
)  # fmt: skip
def test_a_name_tells_the_size_of_a_file(name: str, gigabytes: float) -> None:
    source = open_model(name)
    assert source.as_stored is not None and source.as_stored.quant_method == "gguf" and not source.has_weights
    assert source.as_stored.tensor_bytes == pytest.approx(gigabytes * 1e9, rel=source.as_stored.spread)
    assert any("known by its name alone" in note for note in source.ir.notes)


def test_types_that_publishers_mix_are_known_less_well() -> None:
    own, mixed = (open_model(f"unsloth/Qwen3-8B-GGUF:{kind}").as_stored for kind in ("Q4_K_M", "UD-Q4_K_XL"))
    assert own is not None and mixed is not None and own.spread < mixed.spread


def test_a_file_that_is_not_here_is_read_by_its_name_only_where_it_is_elsewhere() -> None:
    with pytest.raises(InputError, match="cannot be read"):
        open_model("/nowhere/tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf")
    source = open_model("/nowhere/tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf", elsewhere="")
    assert source.as_stored is not None and source.as_stored.tensor_bytes == pytest.approx(0.669e9, rel=0.05)
    named = open_model("/nowhere/model-Q4_K_M.gguf", elsewhere="Qwen/Qwen3-0.6B")  # its tokenizer tells
    assert named.ir.hidden_size == 1024


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unsloth/Qwen3-0.6B-GGUF:Q4_K_X", "no type of GGUF files. Did you mean Q4_K_S or Q4_K_M"),
        ("unsloth/Qwen3-0.6B-GGUF", "one a format"),
    ],
)  # fmt: skip
def test_what_names_no_type_is_asked_back(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        open_model(name)
    assert caught.value.remedy is not None and "Q4_K_M" in caught.value.remedy


def test_parts_of_a_fused_matrix_keep_a_type_each_in_rows_as_long_as_the_widest() -> None:
    """vLLM multiplies q, k and v of a GGUF file one by one, from one tensor that is padded (`_create_padded_weight_param`)."""
    source = open_model("bartowski/Meta-Llama-3-8B-Instruct-GGUF:Q4_K_M")
    old, packaged = (
        check(source, "RTX 4090", context=4096, settings=settings)
        for settings in (Settings(version="0.10.2"), Settings(version="0.33.0", features=Features(reads_gguf=True)))
    )
    assert old.fits and packaged.fits
    # Values are in Q6_K (210 bytes of 256) in half of the layers, where queries and keys (Q4_K, 144) are padded to that.
    padding = 16 * (4096 + 1024) * (4096 // 256) * (210 - 144)
    assert source.as_stored is not None
    assert padded(source.as_stored).tensor_bytes - source.as_stored.tensor_bytes == padding
    for answered in (old, packaged):
        assert answered.document.memory.weights.value > source.as_stored.tensor_bytes + padding
    dense = open_model("meta-llama/Meta-Llama-3-8B-Instruct").ir
    assert padded(dense) is dense
