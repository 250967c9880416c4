"""A job whose pieces other processes carry out, each with nothing but what is on disk: the result is one process's, choices included."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from passes.ir.model import ModelIR
from passes.prune.depth import DepthPrune
from passes.quantize.format_names import pass_named
from passes.run.execute import execute
from passes.run.job import Job
from passes.steps.progress import Progress
from passes.text.source import TextSource
from tests.elsewhere import Elsewhere


@pytest.fixture
def job(llama: Path, llama_ir: ModelIR, tmp_path: Path) -> Job:
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog; it is seldom seen to rest. " * 40)
    exl2 = pass_named("exl2-4.0")
    assert exl2 is not None
    return Job(
        llama_ir, llama, (DepthPrune(1), exl2), tmp_path / "out", tmp_path / "work",
        calibration=TextSource(str(text), 4, 32), evaluation=TextSource("python-reference", 2, 32),
    )  # fmt: skip


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.slow
def test_pieces_that_share_only_the_disk_make_one_process_s_result(job: Job, tmp_path: Path) -> None:
    """What no run before made counts as made by this one; a second run finds all of it."""
    here = execute(job)
    events: list[Progress] = []
    apart, executor = replace(job, out=tmp_path / "apart", work=tmp_path / "elsewhere"), Elsewhere()
    there = execute(apart, events.append, executor=executor)
    assert content(apart.out) == content(job.out) and there.passes == here.passes and there.measured == here.measured
    assert executor.done == [
        "calibration text", "evaluation text", "1: prune_depth", "2: quantize_exl2", "walk", "assemble", "evaluate",
    ]  # fmt: skip
    assert [step.name for step in there.steps if not step.reused] == [step.name for step in here.steps]
    assert [event.detail for event in events if event.step == "tasks"] == executor.done
    again = execute(apart, executor=Elsewhere())
    assert all(step.reused for step in again.steps)


def test_descriptions_travel_by_content(llama_ir: ModelIR) -> None:
    """A hash is of the process that computed it: what arrives has one of its own."""
    hash(llama_ir)
    arrived = pickle.loads(pickle.dumps(llama_ir))
    assert arrived == llama_ir and hash(arrived) == hash(llama_ir)
    assert "_hash" not in pickle.loads(pickle.dumps(llama_ir)).__dict__
