"""Several cards: two processes train as one does, go on where both were killed, and leave nothing running."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from passes.distill.student import sharing
from passes.distill.trainer import Curve, TrainingJob, train
from passes.errors import TightfitError
from tests.distill.conftest import training_job
from tests.forked import Child

pytestmark = pytest.mark.slow


def quietly(asked: TrainingJob) -> None:
    train(asked, lambda done, total, detail="": None)


def weights(asked: TrainingJob) -> dict[str, torch.Tensor]:
    return load_file(asked.trained / "model.safetensors")


def test_two_processes_killed_on_their_way_end_where_one_does(llama: Path, tmp_path: Path) -> None:
    alone, two = training_job(llama, tmp_path / "alone"), training_job(llama, tmp_path / "two", processes=2, apart=True)
    quietly(alone)
    child = Child(quietly, two)
    while not list(two.place.glob("checkpoint-*/trainer_state.json")):
        assert not child.ended, child.wait().stderr
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    while running(two.place / "job.json"):  # they end by themselves
        time.sleep(0.1)
    assert not two.trained.exists()
    told: list[tuple[int, str]] = []
    train(two, lambda done, total, detail="": told.append((done, detail)))
    assert told and told[-1][1].startswith("loss ")
    one_s, two_s = weights(alone), weights(two)
    assert one_s.keys() == two_s.keys()
    for name, tensor in one_s.items():
        # AdamW divides by the root of tiny second moments, which makes more of what sums in another order differ in.
        assert torch.allclose(tensor, two_s[name], atol=1e-3), name
    curves = [[(point.tokens, point.loss) for point in Curve(each.place).points] for each in (alone, two)]
    assert [tokens for tokens, _ in curves[0]] == [tokens for tokens, _ in curves[1]]
    assert [loss for _, loss in curves[0]] == pytest.approx([loss for _, loss in curves[1]], rel=1e-3)


def running(job_file: Path) -> list[str]:
    """The processes that have a training's file among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(job_file).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def test_a_process_that_fails_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    asked = training_job(tmp_path / "nothing", tmp_path / "fails", apart=True)
    with pytest.raises(TightfitError, match=r"the training ended with 1: \S*Error: .*nothing") as failed:
        quietly(asked)
    assert "log.txt" in str(failed.value.remedy)


def test_as_many_cards_share_a_step_as_divide_its_sequences() -> None:
    assert [sharing(rows, 4) for rows in (1, 2, 4, 6, 8)] == [1, 2, 4, 3, 4]
