"""Calibration: what is measured replaces what was fitted, says so, and is kept whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from passes.errors import InputError
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from targets.engines.engine import Parallel, Settings, SpeedEstimate, find_engine
from targets.gpu import Gpu, find_gpu
from targets.machine import calibrate
from targets.machine.calibrate import (
    LOAD,
    Observation,
    ServedModel,
    _queued,
    calibrate_machine,
    calibrate_served,
    error_line,
    fit_load,
    is_device,
    predict,
    store,
)
from targets.machine.profile import Profile, believed_profile, implausible, load_profile, measured_values, profile_path
from targets.quantity import Basis
from targets.serve.client import Answer
from targets.serve.load import Load, LoadTiming
from targets.speed.rates import engine_values
from targets.workload import Workload

CPU = find_gpu("cpu")
PROBE = {
    "device": "cpu", "vector_bytes_per_s": 11e9, "copy_bytes_per_s": 30e9, "bf16_flops": 2e11, "int8_ops": 4e11,
    "int4_vector_bytes_per_s": 3.2e9, "int4_flops": 9e10, "launch_s": 1e-5,
}  # fmt: skip
H100 = find_gpu("H100 SXM")
#: What an H100 was once said to do: products of a few rows, each waited for.
NONSENSE = {
    "device": "NVIDIA H100 80GB HBM3", "memory_bytes": 79.19 * 2**30, "vector_bytes_per_s": 972e9, "copy_bytes_per_s": 2.9e12,
    "bf16_flops": 15.6e12, "int8_ops": 113.9e12, "fp8_flops": 1050e12, "launch_s": 31.7e-6,
}  # fmt: skip
#: What it does.
RIGHT = NONSENSE | {"vector_bytes_per_s": 2.6e12, "bf16_flops": 790e12, "int8_ops": 1200e12, "launch_s": 4e-6}
WORK = Workload(context=2048, concurrency=1, input_tokens=128, output_tokens=64)


def predicted(engine: str, ir: ModelIR, gpu: Gpu) -> SpeedEstimate:
    return find_engine(engine).estimate(ir, gpu, Settings(), WORK).speed


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
    assert predicted("vllm-cpu", ir, CPU).tpot_ms.basis is Basis.ASSUMED
    slow = store(Profile(CPU.name, PROBE, {})) and predicted("vllm-cpu", ir, CPU).tpot_ms
    fast = store(Profile(CPU.name, PROBE | {"vector_bytes_per_s": 22e9}, {})) and predicted("vllm-cpu", ir, CPU).tpot_ms
    assert slow.basis is fast.basis is Basis.MEASURED
    assert fast.value < 0.7 * slow.value


def test_a_card_s_efficiency_follows_what_a_copy_reached() -> None:
    gpu = find_gpu("H100 SXM")
    probe = {"copy_bytes_per_s": 0.46 * gpu.bandwidth_bytes_per_s, "bf16_flops": 0.75 * 989e12}
    shipped = engine_values("vllm")
    measured = measured_values(shipped, "vllm", gpu, Profile(gpu.name, probe, {}))
    assert measured["memory"] == pytest.approx(shipped["memory"] / 2)
    assert measured["compute"] == pytest.approx(shipped["compute"])


def test_half_of_what_a_4_bit_kernel_was_measured_with_tells_nothing_of_it() -> None:
    shipped = engine_values("vllm-cpu")
    for left_out in ("int4_vector_bytes_per_s", "int4_flops"):
        probe = {name: value for name, value in PROBE.items() if name != left_out}
        assert (
            measured_values(shipped, "vllm-cpu", CPU, Profile(CPU.name, probe, {}))["memory.w4"] == shipped["memory.w4"]
        )


def test_a_load_finds_the_engine_s_own_constants() -> None:
    """Timings made with other constants are met again by constants fitted on three of them."""
    ir, profile = open_model("HuggingFaceTB/SmolLM2-135M-Instruct").ir, Profile(CPU.name, PROBE, {})
    start = measured_values(engine_values("vllm-cpu"), "vllm-cpu", CPU, profile)
    truth = start | {"memory": 1.2, "compute": 0.7, "step_s": 0.004, "host_s": 0.03}

    model = ServedModel(ir, "vllm-cpu", CPU, Parallel())

    def seen(inputs: int, clients: int = 1) -> Observation:
        asked = Load(inputs, 32, clients, clients)
        means = predict(asked, model, profile, truth)
        return Observation(asked, means.ttft_s, means.tpot_s)

    values = start | fit_load([seen(16), seen(256), seen(1024), seen(256, 8)], model, profile)
    for inputs, clients in ((16, 1), (512, 1), (1024, 1), (256, 4)):
        found = predict(seen(inputs, clients).load, model, profile, values)
        assert found.tpot_s == pytest.approx(seen(inputs, clients).tpot_s, rel=0.05)
        assert found.ttft_s == pytest.approx(seen(inputs, clients).ttft_s, rel=0.08)


def test_what_a_running_sequence_costs_on_this_machine_is_found() -> None:
    """A processor without kernels of its own takes milliseconds for what a card's host does in microseconds."""
    ir, profile = open_model("HuggingFaceTB/SmolLM2-135M-Instruct").ir, Profile(CPU.name, PROBE, {})
    truth = measured_values(engine_values("vllm-cpu"), "vllm-cpu", CPU, profile) | {"sequence_s": 0.006}
    model = ServedModel(ir, "vllm-cpu", CPU, Parallel())

    def seen(asked: Load) -> Observation:
        means = predict(asked, model, profile, truth)
        return Observation(asked, means.ttft_s, means.tpot_s)

    start = measured_values(engine_values("vllm-cpu"), "vllm-cpu", CPU, profile)
    values = start | fit_load([seen(asked) for asked in LOAD], model, profile)
    for clients in (4, 16, 48):
        asked = Load(16, 32, clients, clients)
        assert predict(asked, model, profile, values).tpot_s == pytest.approx(seen(asked).tpot_s, rel=0.08)


def test_a_server_that_answers_fewer_at_once_tells_nothing_of_several() -> None:
    def timing(*firsts_s: float) -> LoadTiming:
        answers = [Answer(first_s, 0.31, 32, "") for first_s in firsts_s]
        return LoadTiming.of("test", Load(256, 32, 4, 4), answers, 1.0, [])

    assert not _queued(timing(0.1, 0.12, 0.15, 0.2))
    assert _queued(timing(0.1, 0.1, 0.42, 0.42))
    assert _queued(timing(0.1, 0.42, 0.74, 1.06))


@pytest.mark.parametrize(
    "text", ["{", "3", "[" * 9999, '{"device": "x", "probe": {"bf16_flops": "fast"}, "engines": {}}']
)
def test_a_damaged_profile_is_as_good_as_none_and_predictions_say_so(text: str) -> None:
    path = profile_path(CPU.name)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    profile, [note] = believed_profile(CPU)
    assert profile is None
    assert str(path) in note
    assert "`optimize calibrate` measures it anew" in note


def test_a_load_needs_a_measured_machine() -> None:
    ir = open_model("HuggingFaceTB/SmolLM2-135M-Instruct").ir
    with pytest.raises(InputError, match="never measured"):
        calibrate_served("http://127.0.0.1:1", "x", ServedModel(ir, "vllm-cpu", CPU, Parallel()))


def test_the_profile_is_plain_json() -> None:
    profile = store(Profile(CPU.name, PROBE, {"vllm-cpu": {"memory": 1.1}}))
    assert json.loads(profile_path(CPU.name).read_text()) == profile.as_json()


def probed(monkeypatch: pytest.MonkeyPatch, folder: Path, found: object) -> None:
    """Let the probe be a program that prints what is given."""
    program = folder / "probe.py"
    program.write_text(f"print({json.dumps(json.dumps(found))})\n")
    monkeypatch.setattr(calibrate, "PROBE", program)


def test_rates_that_a_card_cannot_have_are_named_beside_its_own() -> None:
    assert implausible(H100, NONSENSE) == (
        "972 GB/s, a matrix read for one row (the card's own: 3350)",
        "15.6 TFLOP/s in 16 bits (the card's own: 989)",
        "113.9 TOP/s in int8 (the card's own: 1978)",
    )


@pytest.mark.parametrize("found", [RIGHT, RIGHT | {"int8_ops": None, "fp8_flops": None}])
def test_rates_that_a_card_can_have_are_believed(found: dict[str, object]) -> None:
    assert implausible(H100, found) == ()


@pytest.mark.parametrize("rate", [11e12, 0.0, float("nan")])
def test_rates_beyond_a_card_s_own_and_no_rates_are_not_believed(rate: float) -> None:
    (wrong,) = implausible(H100, RIGHT | {"copy_bytes_per_s": rate})
    assert "copying" in wrong


def test_what_is_assumed_of_a_device_refuses_no_measurement() -> None:
    assert implausible(CPU, PROBE | {"bf16_flops": 1e15}) == ()
    assert implausible(find_gpu("24GB"), NONSENSE) == ()


def test_nonsense_is_refused_and_not_kept(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    probed(monkeypatch, home, NONSENSE)
    with pytest.raises(InputError, match=r"H100 SXM.*972 GB/s.*15\.6 TFLOP/s.*113\.9 TOP/s") as error:
        calibrate_machine(H100)
    assert error.value.exit_code == 2
    assert error.value.remedy is not None
    assert "close what else runs on the card" in error.value.remedy
    assert load_profile(H100.name) is None


def test_right_rates_are_kept(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    probed(monkeypatch, home, RIGHT)
    profile = calibrate_machine(H100)
    assert believed_profile(H100) == (profile, ())


def test_stored_nonsense_is_not_believed_and_predictions_say_so(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    ir = open_model("HuggingFaceTB/SmolLM2-135M-Instruct").ir
    fitted = predicted("vllm", ir, H100)
    store(Profile(H100.name, NONSENSE, {"vllm": {"memory": 0.1}}))
    found = predicted("vllm", ir, H100)
    assert found.tpot_ms == fitted.tpot_ms
    assert found.tpot_ms.basis is not Basis.MEASURED
    (note,) = found.notes
    assert "15.6 TFLOP/s" in note
    assert "optimize calibrate" in note
    probed(monkeypatch, home, RIGHT)
    assert calibrate_machine(H100).engines == {}  # what was fitted on nonsense goes with it
    assert predicted("vllm", ir, H100).tpot_ms.basis is Basis.MEASURED


def test_one_card_s_rates_are_not_kept_under_another_s_name(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    probed(monkeypatch, home, RIGHT)
    for name in ("RTX 4090", "H100 PCIe", "80GB"):
        with pytest.raises(InputError, match="torch sees NVIDIA H100 80GB HBM3"):
            calibrate_machine(find_gpu(name))
    with pytest.raises(InputError, match="torch sees NVIDIA H100 80GB HBM3"):
        calibrate_machine(CPU)
    assert not list(home.rglob("*.json"))


def test_a_card_without_a_name_in_the_catalog_is_known_by_its_memory() -> None:
    unknown = {"device": "NVIDIA Engineering Sample", "memory_bytes": 79.2 * 2**30}
    assert is_device(H100, unknown)
    assert is_device(find_gpu("80GB"), unknown)
    assert not is_device(find_gpu("RTX 4090"), unknown)
    assert not is_device(CPU, unknown)
    assert not is_device(H100, {"device": "cpu"})


def test_a_failed_probe_says_what_failed(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    cuda = "Traceback …\ntorch.OutOfMemoryError: CUDA out of memory. Tried …\nCompile with `TORCH_USE_CUDA_DSA`"
    assert error_line(cuda) == "torch.OutOfMemoryError: CUDA out of memory. Tried …"
    assert error_line("") == "no output"
    program = home / "probe.py"
    program.write_text(f"import sys; sys.exit({cuda!r})")
    monkeypatch.setattr(calibrate, "PROBE", program)
    with pytest.raises(InputError, match="out of memory") as error:
        calibrate_machine(H100)
    assert error.value.remedy == "close what else runs on the card"


def test_a_probe_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    program = home / "probe.py"
    program.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(calibrate, "PROBE", program)
    with pytest.raises(InputError, match="not measured within"):
        calibrate_machine(H100, seconds=0.01)
