"""`verify` of what cannot run here is one message, before any engine is looked for or started."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest

from passes.chain import rewrite
from passes.errors import GoalMissedError, InputError
from passes.files.manifest import manifest_digest, write_manifest
from passes.ir.sources import open_model
from planner.certificate import NAME, Comparison, read_certificate
from planner.choice.goals import Goal
from planner.machine import require_build, require_cards
from planner.plan.document import PlanDocument, portable
from planner.plan.full_context import full_context
from planner.plan.make import plan
from planner.plan.opened import Opened
from planner.plan.parts.chosen import PlannedGoal
from planner.plan.saved import save
from planner.spec.spec import Spec
from planner.verifying.report import VerifyReport, read_report
from planner.verifying.result import verify_files
from planner.verifying.soak import Promise, soak_report
from planner.verifying.verify import UnderLoad, load_of, verify
from targets.machine.devices import installed_gpus
from targets.quantity import Quantity
from targets.serve.engine_build import installed_vllm
from targets.serve.load import Load, LoadTiming, Spread
from targets.serve.soak import Soaked
from targets.serve.verifier import Installed, Observed, Verifier, VerifyRequest
from targets.serve.watch import Watched
from tests.planner.conftest import run
from tests.planner.test_documents import EARLIER
from tests.targets.test_load import script

_H100, _4090 = "NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090"


def planned(gpu: Any = "rtx-4090", engine: str = "vllm", clients: int = 1, **target: int) -> PlanDocument:
    spec = {
        "model": "Llama-3.2-1B-Instruct", "target": {"gpu": gpu, **target}, "engine": engine,
        "workload": {"context": 2048, "concurrency": clients}, "passes": {"quantize": {"formats": ["w8a8"], "dense": True}},
    }  # fmt: skip
    return plan(Spec.model_validate(spec)).document


def timing(asked: Load, **changed: Any) -> LoadTiming:
    """A load that went by at 50 ms to the first token, 10 ms a further one."""
    figures = {"tok_s": 90.0, "seconds": 10.0, "failed": 0, **changed}
    return LoadTiming(
        "a client", asked, Spread(50.0, 49.0, 60.0, 55.0, 70.0), Spread(10.0, 9.9, 12.0, 11.0, 13.0), **figures
    )


class Fake(Verifier):
    """Shows what it is told to; notes what it was asked."""

    def __init__(self, **shown: Any) -> None:
        self.shown = shown

    def python(self, given: Path | None) -> Path:
        return given or Path("python")

    def installed(self, python: Path) -> Installed:
        return Installed(self.shown.get("version", "0.32.1"))

    def observe(self, request: VerifyRequest, say: Callable[[str], None]) -> Observed:
        self.asked = request
        loads = self.shown.get("loads") or (timing(request.load),)
        cache = self.shown.get("kv_tokens", int(request.kv_tokens.value))
        told = self.shown.get("tells_cache", True)
        soaked = None if request.soak is None else Soaked(timing(Load(1, 1, 1, 4)), self.shown["watched"])
        return Observed(cache, None, loads, 3.0, "words", None, self.shown.get("notes", ()), told, soaked)


@pytest.fixture
def shows(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Fake]:
    """Have plans for vLLM driven by a fake on a machine that has their card."""

    def shown(**figures: Any) -> Fake:
        fake = Fake(**figures)
        monkeypatch.setattr("targets.engines.vllm.engine.Vllm.verifier", lambda engine: fake)
        monkeypatch.setattr("planner.verifying.verify.installed_gpus", lambda: (_4090,))
        return fake

    return shown


def on_two(document: PlanDocument) -> PlanDocument:
    chosen = document.decision
    return replace(document, chosen=replace(chosen, settings=replace(chosen.settings, tensor_parallel=2)))


@pytest.fixture
def result(tmp_path: Path) -> Callable[[PlanDocument], Path]:
    def made(document: PlanDocument) -> Path:
        folder = tmp_path / "made"
        folder.mkdir()
        save(portable(document), folder / "plan.json")
        shutil.copy(EARLIER / NAME, folder / NAME)
        (folder / "launch").mkdir()
        (folder / "launch" / "vllm.yaml").write_text("served-model-name: made\n")
        (folder / "launch" / "run.sh").write_text("exit 7\n")
        return folder

    return made


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ((), r"planned for RTX 4090, none here \(this machine has no card\)"),
        ((_H100,), rf"planned for RTX 4090, none here \(this machine has {_H100}\)"),
        ((_H100, _H100), rf"\(this machine has 2 × {_H100}\)"),
        (("Mystery Card 9000",), r"none here \(this machine has Mystery Card 9000\)"),
    ],
)
def test_a_card_that_is_not_here_is_named_with_what_is(installed: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        require_cards(planned(), installed)
    assert "copy the result's folder there" in str(refused.value.remedy) and refused.value.exit_code == 2


def test_the_count_of_cards_is_compared_too() -> None:
    with pytest.raises(InputError, match=r"planned for 2 × RTX 4090, 1 here"):
        require_cards(on_two(planned(count=2)), (_4090, _H100))
    require_cards(on_two(planned(count=2)), (_4090, _4090))
    require_cards(planned(), (_H100, _4090))


def test_a_card_known_by_its_size_or_facts_is_any_of_that_memory() -> None:
    require_cards(planned("24GB"), (_4090,))
    require_cards(planned("24GB"), (_H100,))
    require_cards(planned("24GB"), ("Mystery Card 9000",))
    with pytest.raises(InputError, match="planned for generic 24 GB card, none here"):
        require_cards(planned("24GB"), ("Tesla T4",))
    facts = {"name": "mine", "memory_gib": 30.0, "bandwidth_gb_s": 500, "compute_capability": 9.0}
    require_cards(planned(facts), (_H100,))
    with pytest.raises(InputError, match="planned for mine"):
        require_cards(planned(facts), (_4090,))


def test_a_processor_needs_no_card_and_its_own_build() -> None:
    document = planned("cpu", "vllm-cpu")
    require_cards(document, ())
    require_cards(document, (_H100,))
    require_build(document, "cpu", "python")
    require_build(document, None, "python")
    with pytest.raises(InputError, match=r"planned for vLLM's CPU build, but .* has vLLM for GPUs"):
        require_build(document, "cuda", "python")
    with pytest.raises(InputError, match=r"planned for vLLM for GPUs, but .* has vLLM's CPU build"):
        require_build(planned(), "cpu", "python")


def test_verify_refuses_before_it_looks_for_an_engine(
    result: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = result(planned())
    monkeypatch.setattr("planner.verifying.verify.installed_gpus", lambda: (_H100,))
    monkeypatch.setattr("targets.serve.drive.engine_python", lambda given: pytest.fail("an engine was looked for"))
    code, out, err = run(monkeypatch, capsys, "verify", folder)
    assert code == 2 and "planned for RTX 4090, none here" in err and "Traceback" not in err + out
    code, out, _ = run(monkeypatch, capsys, "verify", folder, "--json")
    assert code == 2 and "none here" in json.loads(out)["error"]["message"]


def test_verify_refuses_another_build_before_it_starts_it(
    result: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho cpu\n")
    python.chmod(0o755)
    monkeypatch.setattr("planner.verifying.verify.installed_gpus", lambda: (_4090,))
    monkeypatch.setattr("targets.serve.drive.serving", lambda *_: pytest.fail("an engine was started"))
    with pytest.raises(InputError, match="has vLLM's CPU build"):
        verify(result(planned()), python)


@pytest.mark.parametrize(
    ("distributions", "build"),
    [
        ({"vllm-cpu": "0.32.0"}, "cpu"), ({"vllm_cpu": "0.32.0"}, "cpu"), ({"vllm": "0.32.0+cpu"}, "cpu"), ({"vllm": "0.32.0"}, "cuda"),
        ({"vllm": "0.32.0+cu129"}, "cuda"), ({"vllm": "0.32.0+rocm700"}, None), ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_build_is_read_from_what_is_installed(
    distributions: dict[str, str], build: str | None, tmp_path: Path
) -> None:
    for name, version in distributions.items():
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" -S "$2" "$3"\n')
    python.chmod(0o755)
    found = installed_vllm(python)
    assert found.build == build
    assert found.version == distributions.get("vllm", distributions.get("vllm-cpu", distributions.get("vllm_cpu")))


def test_a_python_that_cannot_be_asked_says_nothing(tmp_path: Path) -> None:
    assert installed_vllm(tmp_path / "none") == Installed(None, None)


def test_cards_are_named_as_the_driver_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (_H100, _4090)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(names))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: names[handle])
    assert installed_gpus() == names


def test_without_a_driver_there_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert installed_gpus() == ()


def asking(document: PlanDocument, **wanted: float) -> PlanDocument:
    """The plan with goals on speed, met as planned."""
    units = {goal.value.lower(): goal for goal in (Goal.TTFT, Goal.TPOT, Goal.DECODE, Goal.THROUGHPUT)}
    goals = tuple(
        PlannedGoal(units[name], value, units[name].unit, units[name].at_most, True, Quantity.exact(value))
        for name, value in wanted.items()
    )
    return replace(document, chosen=replace(document.decision, goals=goals))


def checks(report: VerifyReport) -> dict[str, Comparison]:
    return {check.name: check for check in report.checks}


def test_the_load_is_the_workload_s_and_held_against_the_prediction_and_the_goals(result: Any, shows: Any) -> None:
    fake = shows(version="0.32.1", notes=("something",))
    document = asking(planned(clients=8), ttft=100, tpot=5, decode=90, throughput=100)
    folder = result(document)
    report = verify(folder)
    asked = fake.asked.load
    assert (asked.concurrency, asked.input_tokens, asked.output_tokens, asked.rate) == (8, 512, 128, None)
    assert asked.requests == 80, "ten answers a client, as the prediction is made for"
    found = checks(report)
    assert {"TTFT, ms", "TPOT, ms", "decode, tok/s", "throughput, tok/s"} <= set(found)
    assert (found["TTFT, ms"].measured, found["decode, tok/s"].measured) == ("50", "100.0")
    assert not any(found[name].binding for name in ("TTFT, ms", "TPOT, ms", "decode, tok/s", "throughput, tok/s"))
    goals = {name: check.holds for name, check in found.items() if name.startswith("goal")}
    assert goals == {"goal: TTFT": True, "goal: TPOT": False, "goal: decode": True, "goal: throughput": False}
    assert all(found[name].binding for name in goals) and not report.holds
    saved = json.loads((folder / "verified.json").read_text())
    assert {"format_version", "holds", "checks", "start_seconds", "sample"} <= set(saved)
    assert saved["loads"][0]["tool"] == "a client" and saved["loads"][0]["load"]["concurrency"] == 8
    assert (saved["engine_version"], saved["notes"]) == ("0.32.1", ["something"])


def test_a_slow_workload_is_asked_for_fewer_answers() -> None:
    document = planned(clients=4)
    speed = document.decision.speed
    assert speed is not None

    def requests(tok_s: float, seconds: float = 120) -> int:
        slow = replace(speed, throughput_tok_s=Quantity.exact(tok_s))
        return load_of(replace(document, chosen=replace(document.decision, speed=slow)), seconds=seconds).requests

    assert [requests(tok_s) for tok_s in (1e6, 4 * 128 / 24, 1e-3)] == [40, 20, 12]
    assert requests(4 * 128 / 2, 8) == 16
    assert load_of(replace(document, chosen=replace(document.decision, speed=None))).requests == 12


def test_another_version_is_said_and_binds_nothing(result: Any, shows: Any) -> None:
    shows(version="0.26.0")
    report = verify(result(planned()))
    version = checks(report)["vllm version"]
    assert (version.predicted, version.measured, version.holds, version.binding) == ("0.33", "0.26.0", False, False)
    assert report.holds and report.engine_version == "0.26.0"


def test_a_version_begins_as_planned_digit_by_digit(result: Any, shows: Any) -> None:
    shows(version="0.321")
    assert not checks(verify(result(planned())))["vllm version"].holds


def test_requests_without_an_answer_break_a_promise(result: Any, shows: Any) -> None:
    shows(loads=(timing(Load(512, 128, 1, 10), failed=1, error="503"),))
    report = verify(result(planned()))
    assert not checks(report)["requests without an answer"].holds and not report.holds


def test_a_load_that_could_not_be_put_on_as_planned_is_shown_without_judgement(result: Any, shows: Any) -> None:
    shows(loads=(timing(Load(512, 128, 1, 10)),))
    report = verify(result(asking(planned(clients=8), ttft=1, throughput=1)))
    found = checks(report)
    assert found["TTFT, ms, 1 at a time"].predicted == "" and "TTFT, ms" not in found
    goal = found["goal: TTFT"]
    assert (goal.measured, goal.holds, goal.binding) == ("not measured (1 at a time)", False, False)
    assert report.holds


def test_requests_that_arrive_by_chance_are_held_against_the_goals_but_for_throughput(result: Any, shows: Any) -> None:
    fake = shows()
    report = verify(result(asking(planned(), ttft=100, throughput=1e9)), load=UnderLoad(rate=2.0))
    assert fake.asked.load.rate == 2.0
    found = checks(report)
    assert found["goal: TTFT"].binding and found["goal: TTFT"].holds
    assert not found["goal: throughput"].binding and report.holds and "TTFT, ms, 2 a second" in found


def test_a_cache_that_is_smaller_than_promised_breaks_a_promise(result: Any, shows: Any) -> None:
    shows(kv_tokens=16)
    assert not verify(result(planned())).holds


def test_an_engine_that_does_not_tell_its_cache_is_not_asked_for_it(result: Any, shows: Any) -> None:
    shows(kv_tokens=None, tells_cache=False)
    report = verify(result(planned()))
    assert report.holds and "KV tokens" not in checks(report)


def test_what_is_printed_names_tool_load_and_notes(
    result: Any, shows: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shows(notes=("the [bench] did not run",))
    code, out, _ = run(monkeypatch, capsys, "verify", result(planned()))
    assert code == 0
    assert "10 requests of 512 + 128 tokens, 1 at a time, by a client" in out
    assert "TTFT median 49.0, p95 60.0 ms" in out and "the [bench] did not run" in out


def test_without_the_engine_s_own_bench_our_client_puts_the_load_on_and_says_so(
    result: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    document = planned(clients=3)
    folder = result(document)
    tokens = f"{document.decision.kv_cache.tokens.value:,.0f}"
    script(folder / "launch", "--log", f"GPU KV cache size: {tokens} tokens")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nif [ "$1" = -I ]; then echo cuda 0.32.0; else echo "no pandas" >&2; exit 1; fi\n')
    python.chmod(0o755)
    monkeypatch.setattr("planner.verifying.verify.installed_gpus", lambda: (_4090,))
    report = verify(folder, python)
    [put_on] = report.loads
    assert (put_on.tool, put_on.load.concurrency, put_on.failed) == ("tightfit", 3, 0)
    assert (
        len(report.notes) == 1 and "vllm bench serve did not run" in report.notes[0] and "no pandas" in report.notes[0]
    )
    assert checks(report)["KV tokens"].holds and report.sample.startswith(" word")
    assert report.engine_version == "0.32.0"


def soaked(folder: Path, document: PlanDocument, monkeypatch: pytest.MonkeyPatch) -> VerifyReport:
    """The report of a soak, the model's description at hand as a result's files give it."""
    ir = rewrite(open_model("Llama-3.2-1B-Instruct").ir, document.decision.chain)
    said = Spec.model_validate({"model": "m", "target": {"gpu": "rtx-4090"}, "workload": {"context": 2048}})
    monkeypatch.setattr("planner.verifying.soak.opened", lambda out: Opened(document, said, ir))
    return verify(folder, load=UnderLoad(soak=True))


def test_a_soak_is_asked_at_full_context_and_held_against_the_plan(
    result: Any, shows: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = shows(watched=Watched(9, 5 << 30, 1 << 20, (20 << 30,), 0.05, 8, 0, 0))
    document = planned(clients=8)
    folder = result(document)
    digest = write_manifest(folder)
    report = soaked(folder, document, monkeypatch)
    asked = fake.asked.soak
    assert asked.seconds == 600 and asked.workload.concurrency == 8
    assert (asked.workload.input_tokens, asked.workload.output_tokens) == (2048 - 128, 128)
    assert report.soak is not None and report.soak.holds and report.holds
    found = {check.name: check for check in report.soak.checks}
    assert (found["preemptions"].predicted, found["preemptions"].measured, found["preemptions"].binding) == (
        "0",
        "0",
        True,
    )
    assert found["requests at work at once"].predicted == "8 of 8" and found["requests at work at once"].holds
    assert {"TTFT, ms mean", "TTFT, ms p95", "TPOT, ms mean", "throughput, tok/s", "memory, GiB"} <= set(found)
    assert found["memory, GiB"].measured == "20.00", "what is in use of the card"
    assert read_report(folder) == report
    assert read_certificate(folder / NAME).soak == report.soak, "the certificate says what held"
    assert verify_files(folder).holds and manifest_digest(folder) != digest, (
        "covered by the list, whose digest is another"
    )
    code, out, _ = run(monkeypatch, capsys, "verify", folder, "--soak")
    assert code == 0 and "Soaked: 4 requests" in out and "preemptions" in out


def test_a_preemption_that_was_not_to_be_breaks_a_promise(
    result: Any, shows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows(watched=Watched(9, preemptions=3))
    document = planned(clients=8)
    report = soaked(result(document), document, monkeypatch)
    assert report.soak is not None and not report.soak.holds and not report.holds


def test_a_soak_is_no_way_to_have_an_edited_certificate_vouched_for(
    result: Any, shows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows()
    document = planned(clients=8)
    folder = result(document)
    write_manifest(folder)
    said = (folder / NAME).read_text()
    (folder / NAME).write_text(said.replace('"holds": true', '"holds": false', 1))
    with pytest.raises(GoalMissedError, match=r"certificate\.json has"):
        soaked(folder, document, monkeypatch)


def test_a_soak_that_fails_is_in_the_certificate_s_verdict(
    result: Any, shows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows(watched=Watched(9, preemptions=3))
    document = planned(clients=8)
    folder = result(document)
    soaked(folder, document, monkeypatch)
    assert not read_certificate(folder / NAME).holds
    shows(watched=Watched(9, preemptions=0))
    soaked(folder, document, monkeypatch)
    assert read_certificate(folder / NAME).holds


def test_a_plan_marks_what_would_only_start(result: Any, shows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of 640 tokens fit, at 32768 each few of them do: a note of the plan, and preemptions break no promise."""
    spec = {
        "model": "Llama-3.1-8B-Instruct", "target": {"gpu": "rtx-4090"}, "engine": "vllm",
        "workload": {"context": 32768, "concurrency": 16}, "passes": {"quantize": {"formats": ["w8a8"], "dense": False}},
    }  # fmt: skip
    document = plan(Spec.model_validate(spec)).document
    chosen = document.decision
    assert chosen.capacity is not None and chosen.speed is not None
    fits = full_context(chosen.kv_cache, chosen.capacity)
    assert 0 < fits.surely <= fits.fit < fits.running == 16 and not fits.promised
    promised = Promise(fits, replace(chosen.speed, preemptions=30, requests=100), *[Quantity.exact(1.0)] * 2)
    report = soak_report(promised, Soaked(timing(Load(1, 1, 16, 20)), Watched(9, preemptions=4)))
    [lost] = [check for check in report.checks if check.name == "preemptions"]
    assert (lost.predicted, lost.measured, lost.binding) == ("6", "4", False) and report.holds
    told = [note for note in chosen.notes if note.startswith("starts, but")]
    assert told == [fits.caution(32768)] and f"{fits.fit} of 16 requests fit at once" in told[0]
    assert not any(note.startswith("starts, but") for note in planned(clients=8).decision.notes)
