"""Calibration text: the same source, seed and model give the same tokens; bad text is said to be bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from passes.calibration import TextSource, token_blocks, tokens_digest
from passes.reason import InputError

LINES = [f"Sentence number {number} says something about the number {number * 7}." for number in range(200)]


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
