"""What goes on beside a card's computing: written in order, recorded by who asked, a failure told to them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from passes.blocks.dense_model import DenseModel
from passes.files.checkpoint import Checkpoint
from passes.ir.model import ModelIR
from passes.walk.beside import WeightsAhead, WrittenBehind
from tests.walk.conftest import BLOCKS

CARD, PROCESSOR = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize("device", [CARD, PROCESSOR])
def test_one_thing_is_written_at_a_time_and_recorded_by_the_caller(device: torch.device) -> None:
    seen: list[str] = []
    threads: set[int] = set()
    with WrittenBehind(device) as behind:
        for number in range(3):

            def record(number: int = number) -> None:
                threads.add(threading.get_ident())
                seen.append(f"recorded {number}")

            behind.run(lambda number=number: seen.append(f"written {number}"), record)  # type: ignore[misc]
        behind.wait()
        behind.wait()
    assert seen == [f"{what} {number}" for number in range(3) for what in ("written", "recorded")]
    assert threads == {threading.get_ident()}


def test_a_write_beside_the_computing_lets_it_go_on() -> None:
    computed = threading.Event()
    with WrittenBehind(CARD) as behind:
        behind.run(lambda: None if computed.wait(30) else pytest.fail("the caller waited"), lambda: None)
        computed.set()
        behind.wait()


@pytest.mark.parametrize("device", [CARD, PROCESSOR])
def test_a_failed_write_is_told_and_not_recorded(device: torch.device) -> None:
    def fail() -> None:
        raise OSError("no space")

    recorded: list[int] = []
    with WrittenBehind(device) as behind, pytest.raises(OSError, match="no space"):
        behind.run(fail, lambda: recorded.append(1))
        behind.wait()
    assert recorded == []


def test_what_was_written_counts_whatever_ends_the_work() -> None:
    recorded: list[int] = []
    with pytest.raises(KeyboardInterrupt), WrittenBehind(CARD) as behind:
        behind.run(lambda: None, lambda: recorded.append(1))
        raise KeyboardInterrupt
    assert recorded == [1]


def test_the_processor_reads_a_block_when_it_is_asked_for(llama: Path, llama_ir: ModelIR) -> None:
    dense = DenseModel(llama_ir, Checkpoint(llama))
    with WeightsAhead(dense, PROCESSOR) as ahead:
        for index in range(BLOCKS):
            taken, expected = ahead.take(index), dense.block(index)
            assert taken.keys() == expected.keys()
            assert all(torch.equal(taken[name], expected[name]) for name in expected)
