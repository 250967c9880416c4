"""kill -9 at any moment: the next run goes on at the first unfinished block and ends with the same bytes."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
from pathlib import Path

import pytest
import torch

from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.walk.state import WalkState
from tests.forked import run
from tests.walk.conftest import BLOCKS, save_tiny_llama
from tests.walk.test_walk import walk


def killed_walk(model: Path, folder: Path, seed: str) -> None:
    """A walk that is killed some time after so many files, in the middle of whatever it is doing then; printing its blocks."""
    chance = random.Random(seed)
    timer = threading.Timer(chance.uniform(0.0, 0.01), lambda: os.kill(os.getpid(), signal.SIGKILL))
    files, last, real = 0, random.Random(seed).randrange(4, 10), Path.replace

    def counted(path: Path, target: Path) -> Path:
        nonlocal files
        files += 1
        if seed != "none" and files == last:
            timer.start()
        return real(path, target)

    Path.replace = counted  # type: ignore[method-assign, assignment]
    ids = torch.randint(0, 256, (12, 32), generator=torch.Generator().manual_seed(3))
    report = lambda done, total, detail="": print("block", done - 1, flush=True)  # noqa: E731
    walk(model, open_model(model).ir, ids, folder, report=report).run()
    timer.cancel()


def shards(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "shards").glob("*.safetensors"))
    }


def child(model: Path, folder: Path, seed: str) -> tuple[int, list[int]]:
    ended = run(killed_walk, model, folder, seed)
    return ended.returncode, [int(line.split()[1]) for line in ended.stdout.splitlines() if line.startswith("block")]


def test_five_kills_end_with_the_bytes_of_an_uninterrupted_run(tmp_path: Path) -> None:
    model = save_tiny_llama(tmp_path / "model", blocks=16)
    assert child(model, tmp_path / "whole", "none")[0] == 0
    finished: list[int] = []
    for seed in random.Random(11).sample(range(1000), 5):
        code, done = child(model, tmp_path / "killed", str(seed))
        assert code == -9, "every kill finds something to resume"
        finished += done
    code, done = child(model, tmp_path / "killed", "none")
    finished += done
    assert code == 0
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")
    assert len(finished) == len(set(finished)), "a finished block was done again"


def test_a_stop_after_any_block_resumes_there(
    llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    walk(llama, llama_ir, tokens, tmp_path / "whole").run()
    blocks: list[int] = []

    def stop(done: int, total: int, detail: str = "") -> None:
        blocks.append(done - 1)
        raise StopError

    for _ in range(BLOCKS):
        with pytest.raises(StopError):
            walk(llama, llama_ir, tokens, tmp_path / "stopped", report=stop).run()
    state = walk(llama, llama_ir, tokens, tmp_path / "stopped").run()
    assert blocks == list(range(BLOCKS)) and state.done == BLOCKS
    assert shards(tmp_path / "stopped") == shards(tmp_path / "whole")


def test_a_finished_walk_keeps_no_hidden_states(
    llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    walk(llama, llama_ir, tokens, tmp_path).run()
    assert not (tmp_path / "hidden").exists() and WalkState(tmp_path).done == BLOCKS


@pytest.mark.parametrize("live", [1, 2])
def test_batches_that_do_not_wait_in_memory_give_the_same_bytes(
    live: int, llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    walk(llama, llama_ir, tokens, tmp_path / "all").run()
    walk(llama, llama_ir, tokens, tmp_path / "few", batches_in_memory=live).run()
    assert shards(tmp_path / "few") == shards(tmp_path / "all")


@pytest.mark.parametrize("damaged", ["state.json", "shards/model-00002.safetensors", "hidden/00002/00000.safetensors"])
def test_a_damaged_work_folder_begins_again(
    damaged: str, llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    """What a power cut leaves of files that the system had not written yet."""

    class StopError(Exception):
        pass

    def stop(done: int, total: int, detail: str = "") -> None:
        if done == 2:
            raise StopError

    walk(llama, llama_ir, tokens, tmp_path / "whole").run()
    with pytest.raises(StopError):
        walk(llama, llama_ir, tokens, tmp_path / "cut", report=stop).run()
    (tmp_path / "cut" / damaged).write_bytes(b"")
    walk(llama, llama_ir, tokens, tmp_path / "cut").run()
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")
