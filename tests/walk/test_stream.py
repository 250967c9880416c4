"""The loop over blocks: which inputs it keeps, where it goes on, and what it does without a device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from passes.blocks.dense_model import DenseModel
from passes.blocks.hidden_states import Place
from passes.blocks.stream import BlockStream
from passes.files.checkpoint import Checkpoint
from passes.ir.model import ModelIR
from tests.walk.conftest import BLOCKS, context


@pytest.fixture
def dense(llama: Path, llama_ir: ModelIR) -> DenseModel:
    return DenseModel(llama_ir, Checkpoint(llama))


def kept(folder: Path) -> list[int]:
    """The blocks whose inputs lie in a folder."""
    return sorted(int(path.name) for path in folder.iterdir())


def through(stream: BlockStream, start: int, last: int = BLOCKS) -> list[int]:
    """Go through the blocks, as one who is ended while block `last` is at work."""
    seen = []
    for block in stream.blocks(start):
        seen.append(block.index)
        with block.loaded() as replicas:
            block.run(replicas)
        if block.index == last:
            break
    return seen


@pytest.mark.parametrize("keep", [1, 2, BLOCKS + 1])
def test_work_goes_on_where_the_inputs_are_whole(
    keep: int, dense: DenseModel, tokens: torch.Tensor, tmp_path: Path
) -> None:
    run = context(tmp_path, tokens)
    assert through(BlockStream(dense, run, 128, keep), 0, last=2) == [0, 1, 2]
    assert kept(tmp_path) == list(range(max(0, 3 - keep), 4))
    again = BlockStream(dense, run, 128, keep)
    assert again.reached() == again.resume(3) == 3
    assert through(again, 3) == [3] and kept(tmp_path) == list(range(max(0, BLOCKS + 1 - keep), BLOCKS + 1))


def test_what_is_recorded_without_inputs_is_begun_again(
    dense: DenseModel, tokens: torch.Tensor, tmp_path: Path
) -> None:
    stream = BlockStream(dense, context(tmp_path, tokens), 128, keep=2)
    through(stream, 0, last=2)
    next((tmp_path / "00002").iterdir()).write_bytes(b"")
    assert stream.resume(3) == 0 and stream.resume(0) == 0


def test_without_a_device_the_blocks_go_by(dense: DenseModel, tokens: torch.Tensor, tmp_path: Path) -> None:
    stream = BlockStream(dense, context(tmp_path, tokens, ()))
    assert stream.resume(2) == 2
    assert [block.index for block in stream.blocks(2)] == [2, 3] and kept(tmp_path) == []


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states stay where they were computed, as on a card that has room for them."""
    monkeypatch.setattr("passes.blocks.stream.place_of", lambda states_bytes, devices: Place.CARD)


def test_in_memory_the_same_states_pass_and_nothing_is_on_disk(
    dense: DenseModel, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = BlockStream(dense, context(tmp_path / "disk", tokens), 128)
    through(on_disk, 0)
    monkeypatch.setattr("passes.blocks.stream.place_of", lambda states_bytes, devices: Place.CARD)
    held = BlockStream(dense, context(tmp_path / "memory", tokens), 128, moves=True)
    through(held, 0)
    for batch in range(len(held.hidden)):
        assert torch.equal(held.hidden.read(BLOCKS, batch), on_disk.hidden.read(BLOCKS, batch))
    assert not (tmp_path / "memory").exists() or kept(tmp_path / "memory") == []


@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize("keep", [1, 2])
def test_what_memory_held_is_saved_now_and_then(
    keep: int, dense: DenseModel, tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: list[int] = []
    run = context(tmp_path, tokens)
    stream, now = BlockStream(dense, run, 128, keep), iter([0.0, 1.0, 61.0, 61.0, 62.0, 63.0])
    monkeypatch.setattr("passes.blocks.stream.time.monotonic", lambda: next(now))
    for block in stream.blocks(0, settled=lambda: settled.append(1)):
        with block.loaded() as replicas:
            block.run(replicas)
    assert settled == [1]
    assert kept(tmp_path) == list(range(3 - keep, 3))  # saved when block 1 was recorded, which took longest
    again = BlockStream(dense, run, 128, keep)
    assert again.resume(3) == 2 and again.resume(1) == 0


@pytest.mark.usefixtures("in_memory")
def test_a_batch_that_moves_leaves_nothing_behind(dense: DenseModel, tokens: torch.Tensor, tmp_path: Path) -> None:
    stream = BlockStream(dense, context(tmp_path, tokens), 128, moves=True)
    block = next(iter(stream.blocks(0)))
    assert stream.hidden.whole(0)
    with block.loaded() as replicas:
        block.run(replicas)
    assert stream.hidden.whole(1) and not stream.hidden.whole(0)


def test_on_disk_nothing_is_dropped_before_what_follows_is_recorded(
    dense: DenseModel, tokens: torch.Tensor, tmp_path: Path
) -> None:
    run, there = context(tmp_path, tokens), []
    stream = BlockStream(dense, run, 128)
    for block in stream.blocks(0, settled=lambda: there.append(kept(tmp_path))):
        with block.loaded() as replicas:
            block.run(replicas)
    assert there == [[index, index + 1] for index in range(BLOCKS)]
