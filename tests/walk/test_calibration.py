"""Calibration text: the same source, seed and model give the same tokens; bad text is said to be bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from passes.errors import InputError
from passes.text.source import TextSource, first_tokens, token_blocks, tokens_digest
from tests.walk.conftest import save_tiny_llama, save_tokenizer

#: The token that `begins` puts before every text.
BEGIN = 257

LINES = [f"Sentence number {number} says something about the number {number * 7}." for number in range(200)]


@pytest.fixture(scope="session")
def begins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer puts a token before every text, as Llama's, Gemma's and Mistral's do, and one behind it."""
    folder = save_tiny_llama(tmp_path_factory.mktemp("begins"))
    save_tokenizer(folder, "<begin> $A <end>")
    return folder


def write(folder: Path, kind: str) -> str:
    path = folder / f"text.{kind}"
    if kind == "txt":
        path.write_text("\n".join(LINES))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"text": line}) for line in LINES))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": LINES}), path)
    return str(path)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_files_become_blocks_of_token_ids(kind: str, llama: Path, tmp_path: Path) -> None:
    source = TextSource(write(tmp_path, kind), 5, 40, seed=1)
    tokens = token_blocks(source, llama)
    assert tokens.shape == (5, 40) and tokens.dtype == torch.int64
    assert torch.equal(tokens, token_blocks(source, llama))


@pytest.mark.parametrize("dataset", ["txt", "python-reference", "self"])
def test_every_block_begins_as_an_engine_begins_a_prompt(dataset: str, begins: Path, tmp_path: Path) -> None:
    tokens = token_blocks(TextSource(write(tmp_path, dataset) if dataset == "txt" else dataset, 5, 40), begins)
    assert tokens.shape == (5, 40)
    assert (tokens[:, 0] == BEGIN).all() and (tokens[:, 1] != BEGIN).all()


def test_only_what_stands_before_a_text_is_put_before_it(llama: Path, begins: Path) -> None:
    from transformers import AutoTokenizer

    assert first_tokens(AutoTokenizer.from_pretrained(llama)) == []
    assert first_tokens(AutoTokenizer.from_pretrained(begins)) == [BEGIN]


def test_a_block_without_room_for_text_behind_its_first_tokens_is_refused(tmp_path: Path) -> None:
    """GLM 4 puts two tokens before every text."""
    folder = save_tiny_llama(tmp_path / "two")
    save_tokenizer(folder, "<begin> <begin> $A")
    with pytest.raises(InputError, match="1 samples of 2 tokens") as caught:
        token_blocks(TextSource("python-reference", 1, 2), folder)
    assert "3 tokens" in str(caught.value.remedy)


def test_a_chat_that_brings_its_first_token_does_not_have_it_twice(begins: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(begins)
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder := tmp_path / "chat")
    talk = [{"messages": [{"role": "user", "content": line}]} for line in LINES]
    (tmp_path / "talk.jsonl").write_text("\n".join(map(json.dumps, talk)))
    tokens = token_blocks(TextSource(str(tmp_path / "talk.jsonl"), 5, 40), folder)
    assert (tokens == BEGIN).sum() == 5


def test_another_seed_draws_other_blocks(llama: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "txt")
    one, two = (token_blocks(TextSource(path, 5, 40, seed), llama) for seed in (0, 1))
    assert tokens_digest(one) != tokens_digest(two)


def test_the_model_writes_its_own_text_reproducibly(llama: Path) -> None:
    one, same, other = (token_blocks(TextSource("self", 3, 24, seed), llama) for seed in (0, 0, 1))
    assert one.shape == (3, 24)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_python_s_reference_needs_no_file(llama: Path) -> None:
    assert token_blocks(TextSource("python-reference", 4, 64), llama).shape == (4, 64)


def test_too_little_text_says_how_much_there_is(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="were asked for") as caught:
        token_blocks(TextSource(write(tmp_path, "txt"), 1000, 400), llama)
    assert "at most" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{oops', ":2: not JSON"),
        ("b.jsonl", '{"label": 3}', "no text found"),
        ("c.txt", b"\xff\xfe\x00x", "not UTF-8"),
    ],
)
def test_damaged_files_are_named(name: str, content: str | bytes, message: str, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        token_blocks(TextSource(str(path), 1, 4), llama)


def test_a_missing_file_is_said_to_be_missing(llama: Path) -> None:
    with pytest.raises(InputError, match=r"no calibration text 'corpus\.txt'"):
        token_blocks(TextSource("corpus.txt", 1, 4), llama)
