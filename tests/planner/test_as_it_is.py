"""What is served as it is: `apply` writes launch files that name the source, and copies nothing; what reads results reads these too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.planner.conftest import run

_SPEC = """
model: Qwen/Qwen2.5-Coder-7B-Instruct
target: { gpu: RTX 4090 }
engine: vllm
workload: { context: 16384, concurrency: 2, input_tokens: 6000, output_tokens: 100 }
goals: { ttft: 2 s }
launch: [systemd]
"""


@pytest.fixture
def optimize(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coder.yaml").write_text(_SPEC)
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


def test_only_launch_files_that_name_the_source_are_written(optimize: Any, tmp_path: Path) -> None:
    """The weights are not here: nothing of them is needed."""
    code, out, err = optimize("apply", "coder.yaml")
    assert code == 0, err
    assert "Qwen/Qwen2.5-Coder-7B-Instruct is served as it is" in out
    result = tmp_path / "coder-tightfit"
    written = {path.relative_to(result).as_posix() for path in result.rglob("*") if path.is_file()}
    assert written == {
        "launch/vllm.yaml", "launch/run.sh", "launch/qwen2-5-coder-7b-instruct.service", "plan.json", "manifest.json", "tightfit.json",
    }  # fmt: skip
    assert yaml.safe_load((result / "launch" / "vllm.yaml").read_text())["model"] == "Qwen/Qwen2.5-Coder-7B-Instruct"
    assert not any(path.name.endswith(".work") for path in tmp_path.iterdir())
    assert optimize("apply", "coder.yaml")[0] == 0, "again it does the same"


def test_what_reads_results_reads_it(optimize: Any, tmp_path: Path) -> None:
    assert optimize("apply", "coder.yaml")[0] == 0
    result = "coder-tightfit"
    assert optimize("show", result)[0] == 0 and optimize("verify", result, "--offline")[0] == 0
    code, out, _ = optimize("check", result, "--json")
    assert code == 0 and json.loads(out)["model"] == "Qwen/Qwen2.5-Coder-7B-Instruct"
    code, out, _ = optimize("launch", result, "--target", "compose")
    assert code == 0 and "--model=Qwen/Qwen2.5-Coder-7B-Instruct" in out
    assert optimize("drift", result, "--engine-version", "0.30")[0] in (0, 3)
    (tmp_path / result / "launch" / "vllm.yaml").write_text("model: another\n")
    assert optimize("verify", result, "--offline")[0] == 4 == optimize("show", result)[0]


def test_another_plan_s_result_stays(optimize: Any, tmp_path: Path) -> None:
    assert optimize("apply", "coder.yaml", "-o", "made")[0] == 0
    (tmp_path / "other.yaml").write_text(_SPEC.replace("Coder-7B", "7B"))
    code, _, err = optimize("apply", "other.yaml", "-o", "made")
    assert code == 2 and "holds the finished result of another plan" in err
    assert optimize("apply", "other.yaml", "-o", "made", "--replace")[0] == 0
