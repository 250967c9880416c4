"""Calibration: what is measured replaces what was fitted, says so, and is kept whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from passes.ir.sources import open_model
from passes.reason import InputError
from targets.calibrate import Observation, calibrate_machine, calibrate_served, fit_load, predict, store
from targets.engines.engine import Parallel, Settings
from targets.engines.speed import estimate
from targets.engines.speed_profile import Profile, load_profile, measured_values, profile_path
from targets.engines.speed_rates import engine_values
from targets.gpu import find_gpu
from targets.quantity import Basis
from targets.workload import Workload

CPU = find_gpu("cpu")
PROBE = {
    "device": "cpu", "vector_bytes_per_s": 11e9, "copy_bytes_per_s": 30e9, "bf16_flops": 2e11, "int8_ops": 4e11,
    "int4_vector_bytes_per_s": 3.2e9, "int4_flops": 9e10, "launch_s": 1e-5,
}  # fmt: skip
WORK = Workload(context=2048, concurrency=1, input_tokens=128, output_tokens=64)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TIGHTFIT_HOME", str(tmp_path))
    return tmp_path


def test_this_machine_is_measured_and_kept(home: Path) -> None:
    profile = calibrate_machine(CPU, seconds=2)
    assert 1e9 < profile.probe["vector_bytes_per_s"] < 1e12
    assert profile.probe["bf16_flops"] > 1e9
    assert load_profile(CPU.name) == profile
    assert [path.parent.name for path in home.rglob("*.json")] == ["profiles"]


def test_predictions_say_measured_and_follow_the_bandwidth() -> None:
    ir = open_model("HuggingFaceTB/SmolLM2-135M-Instruct").ir
    assert estimate("vllm-cpu", ir, CPU, Settings(), WORK).tpot_ms.basis is Basis.ASSUMED
    slow = store(Profile(CPU.name, PROBE, {})) and estimate("vllm-cpu", ir, CPU, Settings(), WORK).tpot_ms
    fast = (
        store(Profile(CPU.name, PROBE | {"vector_bytes_per_s": 22e9}, {}))
        and estimate("vllm-cpu", ir, CPU, Settings(), WORK).tpot_ms
    )
    assert slow.basis is fast.basis is Basis.MEASURED
    assert fast.value < 0.7 * slow.value


def test_a_card_s_efficiency_follows_what_a_copy_reached() -> None:
    gpu = find_gpu("H100 SXM")
    probe = {"copy_bytes_per_s": 0.46 * gpu.bandwidth_bytes_per_s, "bf16_flops": 0.75 * 989e12}
    shipped = engine_values("vllm")
    measured = measured_values(shipped, "vllm", gpu, Profile(gpu.name, probe, {}))
    assert measured["memory"] == pytest.approx(shipped["memory"] / 2)
    assert measured["compute"] == pytest.approx(shipped["compute"])


def test_a_load_finds_the_engine_s_own_constants() -> None:
    """Timings made with other constants are met again by constants fitted on three of them."""
    ir, profile = open_model("HuggingFaceTB/SmolLM2-135M-Instruct").ir, Profile(CPU.name, PROBE, {})
    start = measured_values(engine_values("vllm-cpu"), "vllm-cpu", CPU, profile)
    truth = start | {"memory": 1.2, "compute": 0.7, "step_s": 0.004, "host_s": 0.03}

    def seen(inputs: int) -> Observation:
        means = predict(Observation(inputs, 32, 1, 1), ir, "vllm-cpu", CPU, Parallel(), profile, truth)
        return Observation(inputs, 32, means.ttft_s, means.tpot_s)

    values = start | fit_load([seen(16), seen(256), seen(1024)], ir, "vllm-cpu", CPU, Parallel(), profile)
    for inputs in (16, 512, 1024):
        found = predict(seen(inputs), ir, "vllm-cpu", CPU, Parallel(), profile, values)
        assert found.tpot_s == pytest.approx(seen(inputs).tpot_s, rel=0.05)
        assert found.ttft_s == pytest.approx(seen(inputs).ttft_s, rel=0.08)


def test_a_damaged_profile_is_as_good_as_none() -> None:
    path = profile_path(CPU.name)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert load_profile(CPU.name) is None


def test_a_load_needs_a_measured_machine() -> None:
    ir = open_model("HuggingFaceTB/SmolLM2-135M-Instruct").ir
    with pytest.raises(InputError, match="never measured"):
        calibrate_served("http://127.0.0.1:1", "x", ir, "vllm-cpu", CPU, Parallel())


def test_the_profile_is_plain_json() -> None:
    profile = store(Profile(CPU.name, PROBE, {"vllm-cpu": {"memory": 1.1}}))
    assert json.loads(profile_path(CPU.name).read_text()) == profile.as_json()
