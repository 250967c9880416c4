"""kill -9 of `optimize apply`, five times in a row: checkpoint and launch files end as those of an uninterrupted run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.walk.conftest import save_tiny_llama

_BLOCKS = 16
_SPEC = """
model: model
target: {{ gpu: rtx-4090 }}
engine: vllm
workload: {{ context: 128, concurrency: 1, input_tokens: 32, output_tokens: 16 }}
passes:
  quantize: {{ formats: [w4a16-g32], dense: false }}
  kv_cache: [fp8]
calibration: {{ dataset: {text}, samples: 48, length: 128 }}
evaluation: {{ dataset: python-reference, samples: 2, length: 64 }}
"""


def command(folder: Path, out: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "planner.cli",
        "apply",
        str(folder / "tiny.plan.json"),
        "-o",
        str(folder / out / "made"),
    ]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def finished_blocks(folder: Path) -> int:
    """Blocks that a run in progress has recorded."""
    states = list(folder.glob("walk-*/state.json"))
    return json.loads(states[0].read_text())["done"] if states else 0


def content(folder: Path) -> dict[str, str]:
    """Every file by its digest; the certificate, which holds times, without."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "certificate.json"
    }


@pytest.mark.slow
def test_five_kills_of_apply_end_with_the_files_of_an_uninterrupted_run(tmp_path: Path) -> None:
    save_tiny_llama(tmp_path / "model", blocks=_BLOCKS)
    text = tmp_path / "text.txt"
    text.write_text("every block that is finished stays finished, whatever ends the run. " * 400)
    (tmp_path / "tiny.yaml").write_text(_SPEC.format(text=text.name))
    plan = [
        sys.executable,
        "-m",
        "planner.cli",
        "plan",
        str(tmp_path / "tiny.yaml"),
        "-o",
        str(tmp_path / "tiny.plan.json"),
    ]
    subprocess.run(plan, check=True, capture_output=True, env=environment())
    subprocess.run(command(tmp_path, "whole"), check=True, capture_output=True, env=environment())

    chance = random.Random(5)
    work = tmp_path / "killed" / ".made.work"
    progress = [0]
    for _ in range(5):
        run = subprocess.Popen(
            command(tmp_path, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        )
        wanted = progress[-1] + chance.randint(1, 3)
        while run.poll() is None and finished_blocks(work) < wanted:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02))
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        progress.append(finished_blocks(work))
        assert not (tmp_path / "killed" / "made").exists()
    assert progress == sorted(set(progress)) and progress[-1] < _BLOCKS, "each kill found the walk further on"

    final = subprocess.run(command(tmp_path, "killed"), check=True, capture_output=True, text=True, env=environment())
    assert "Done" in final.stdout
    resumed = content(tmp_path / "killed" / "made")
    assert any(name.startswith("launch/") for name in resumed) and any(
        name.endswith(".safetensors") for name in resumed
    )
    assert resumed == content(tmp_path / "whole" / "made")
