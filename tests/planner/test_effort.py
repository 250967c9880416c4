"""What applying takes, here and on a plan's own card: one arithmetic on each device's rates; and work that a card has no room for is
refused before it begins."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from passes.blocks import devices
from passes.chain import rewrite
from passes.errors import DoesNotFitError, InputError
from passes.ir.operations import columns_in_turn
from passes.ir.sources import open_model
from passes.steps.cost import Work
from planner import apply as apply_module
from planner import machine
from planner.apply import apply
from planner.apply_cost import Effort, Rate, effort, forecast, product_flops, rates_of, walk_size
from planner.certificate import read_certificate
from planner.cli.main import application
from planner.cli.tables.plan import print_plan
from planner.machine import Computing, computing, computing_on
from planner.plan.codec import from_json, to_json
from planner.plan.document import PlanDocument, digest
from planner.plan.make import Plan, plan
from planner.plan.saved import load_plan, save
from planner.spec.parse import parse_spec
from targets.gpu import find_gpu, installed_gpu, this_cpu
from targets.machine.calibrate import store
from targets.machine.profile import Profile
from targets.quantity import Basis, Quantity
from tests.walk.conftest import TINY_SPEC, save_tiny_llama

_H100 = "NVIDIA H100 80GB HBM3"
_SPEC = """
model: meta-llama/Llama-3.1-8B-Instruct
target: { gpu: H100 }
engine: vllm
workload: { context: 8192 }
passes: { quantize: { formats: [w4a16-g128], dense: false }, kv_cache: [fp8] }
"""


@pytest.fixture(autouse=True)
def laptop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without cards, whose processor was never measured."""
    monkeypatch.setenv("TIGHTFIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    has_cards(monkeypatch)


def has_cards(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the driver list these cards, and torch be one that computes on them."""
    monkeypatch.setattr(machine, "_installed", lambda: names)
    monkeypatch.setattr(machine, "built_for_cards", lambda: True)


@pytest.fixture(scope="module")
def made() -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        has_cards(patch)
        return plan(parse_spec(_SPEC))


def forecast_of(made: Plan, device: str) -> Effort:
    source, passes = made.source.ir, made.document.decision.chain
    return effort(made.spec, source, rewrite(source, passes), passes, find_gpu(device))


def test_a_plan_says_what_applying_takes_here_and_on_its_own_card(made: Plan) -> None:
    chosen = made.document.decision
    there = chosen.apply_on_card
    assert there is not None
    assert (chosen.apply.device, there.device) == (this_cpu().name, "H100 SXM")
    assert chosen.apply.host_memory_bytes is None
    assert 40 < there.seconds.value < 900
    assert chosen.apply.seconds.value > 100 * there.seconds.value
    assert there.seconds.basis is Basis.ASSUMED
    assert there.host_memory_bytes is not None
    assert 2 << 30 < there.memory_bytes.low < 24 << 30
    assert there.steps.keys() == chosen.apply.steps.keys()
    assert there.steps == {name: round(seconds, 1) for name, seconds in forecast_of(made, "H100").steps.items()}


def test_the_keys_of_a_plan_stay_and_a_plan_without_the_new_ones_is_read(made: Plan) -> None:
    said = to_json(made.document)
    assert {"seconds", "memory_bytes", "disk_bytes", "steps"} <= said["chosen"]["apply"].keys()
    assert from_json(PlanDocument, json.loads(json.dumps(said)), "the plan") == made.document
    older = json.loads(json.dumps(said))
    del older["chosen"]["apply_on_card"], older["chosen"]["apply"]["device"]
    read = from_json(PlanDocument, older, "the plan")
    assert read.decision.apply_on_card is None
    assert to_json(read) == older and digest(older) != said["digest"]
    assert "here, on this machine" in printed(read)


def printed(document: PlanDocument) -> str:
    console = Console(record=True, width=400, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    print_plan(console, document, "H100 SXM", None)
    return console.export_text()


def test_both_are_printed(made: Plan) -> None:
    (line,) = (line for line in printed(made.document).splitlines() if line.startswith("  apply needs"))
    assert line.startswith("  apply needs about ")
    assert "min on the H100 SXM (" in line or "s on the H100 SXM (" in line
    assert "of the card's memory); about " in line
    assert f"h here, on {this_cpu().name} (" in line
    assert line.endswith("of disk.")


def test_where_the_plans_own_card_computes_there_is_one_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    has_cards(monkeypatch, _H100)
    chosen = plan(parse_spec(_SPEC)).document.decision
    assert chosen.apply.device == "H100 SXM"
    assert chosen.apply_on_card is None
    asked = plan(parse_spec(_SPEC), on=Computing("cpu")).document.decision
    assert asked.apply.device == this_cpu().name
    assert asked.apply_on_card == chosen.apply


def test_a_plan_for_this_processor_has_one_forecast() -> None:
    spec = "model: HuggingFaceTB/SmolLM2-135M-Instruct\ntarget: { gpu: cpu }\nworkload: { context: 2048 }\n"
    chosen = plan(parse_spec(spec)).document.decision
    assert chosen.apply_on_card is None
    assert "apply_on_card" not in to_json(chosen)


def test_what_computes_here_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert computing().is_cpu
    has_cards(monkeypatch, _H100, "NVIDIA GeForce RTX 4090", "NVIDIA Engineering Sample")
    assert computing().name == computing("cuda").name == computing("cuda:0").name == "H100 SXM"
    assert computing("cuda:1").name == "RTX 4090"
    unlisted = computing("cuda:2")
    assert (unlisted.name, unlisted.is_cpu, unlisted.basis) == ("NVIDIA Engineering Sample", False, Basis.ASSUMED)
    assert computing("cpu").is_cpu
    for visible, name in (("1,0", "RTX 4090"), ("1", "RTX 4090"), ("GPU-8f2a", "H100 SXM")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert computing().name == name
    for visible in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert computing().is_cpu
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(machine, "built_for_cards", lambda: False)
    assert computing().is_cpu
    with pytest.raises(InputError, match="--device cuda: no card is seen here"):
        computing("cuda")
    with pytest.raises(InputError, match="unknown device"):
        computing("gpu")


def test_a_device_of_torchs_is_the_catalogs_card(monkeypatch: pytest.MonkeyPatch) -> None:
    name, card = _H100, torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: _Properties())
    assert computing_on(card).name == "H100 SXM"
    name = "NVIDIA Engineering Sample"
    assert computing_on(card).memory_bytes.value == pytest.approx(_Properties.total_memory)
    assert computing_on(torch.device("cpu")) == this_cpu()


class _Properties:
    """A card of 12 GiB as torch describes it."""

    name, uuid, total_memory = _H100, "x", 12 << 30


def test_a_card_that_nobody_names_is_no_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` on a machine with a card whose driver has no NVML."""
    monkeypatch.setattr("targets.gpu.installed_gpus", tuple)
    monkeypatch.setattr("targets.gpu.card_nodes", lambda: 0)
    assert installed_gpu().is_cpu
    monkeypatch.setattr("targets.gpu.card_nodes", lambda: 1)
    with pytest.raises(InputError, match="NVML does not answer") as error:
        plan(parse_spec(_SPEC.replace("gpu: H100", "gpu: auto")))
    assert "name it" in str(error.value.remedy)
    monkeypatch.setattr("targets.gpu.installed_gpus", lambda: (_H100,))
    assert installed_gpu().name == "H100 SXM"


def test_rates_are_data_with_their_origin() -> None:
    kinds = {field.name for field in fields(Work)}
    processor, card = rates_of("processor"), rates_of("card")
    for rates in (processor, card):
        assert rates.by_kind.keys() <= kinds
        assert all(rate.source for rate in rates.by_kind.values())
        assert rates.low < 1 < rates.high
    assert card.by_kind.keys() == kinds, "of a card nothing is part of something else"
    assert processor.measured
    assert card.measured == all(rate.basis is Basis.MEASURED for rate in card.by_kind.values())


def test_each_kind_of_work_takes_its_own_time() -> None:
    rates = replace(
        rates_of("card"),
        by_kind={
            "forwards": Rate(Basis.MEASURED, "x", share=0.5),
            "columns": Rate(Basis.MEASURED, "x", seconds=1e-3),
            "moved": Rate(Basis.MEASURED, "x", bytes_per_s=1e9),
        },
    )
    work = Work(forwards=1e12, columns=100, moved=3e9) + Work(forwards=1e12, hessians=5.0)
    assert rates.seconds(work, 1e12) == pytest.approx(4.0 + 0.1 + 3.0)
    assert rates.seconds(work * 2, 1e12) == pytest.approx(2 * 7.1)
    assert not Work() and Work(moved=1.0)


def test_columns_are_those_of_each_input_once() -> None:
    ir = open_model("meta-llama/Llama-3.1-8B-Instruct").ir
    assert columns_in_turn(ir) == 32 * (3 * 4096 + 14336)


def test_a_measured_card_is_forecast_by_what_it_was_measured_to_do(made: Plan) -> None:
    h100 = find_gpu("H100")
    listed, before = product_flops(h100), forecast_of(made, "H100")
    assert listed == pytest.approx(0.75 * 989e12)
    probe = {"copy_bytes_per_s": 2.9e12, "vector_bytes_per_s": 2.5e12, "bf16_flops": listed / 2}
    store(Profile(h100.name, probe, {}))
    assert product_flops(h100) == listed / 2
    assert forecast_of(made, "H100").seconds.value > 1.2 * before.seconds.value
    store(Profile(h100.name, probe | {"bf16_flops": 15.6e12}, {}))
    assert product_flops(h100) == listed, "what cannot be is not believed"


def test_hidden_states_are_on_the_card_or_beside_it(made: Plan) -> None:
    source, passes = made.source.ir, made.document.decision.chain
    target = rewrite(source, passes)

    def sizes(samples: int) -> tuple[float, float, float]:
        calibration = made.spec.calibration.model_copy(update={"samples": samples, "dataset": "text.txt"})
        spec = made.spec.model_copy(update={"calibration": calibration})
        walk = walk_size(spec, source, target, passes, find_gpu("H100"))
        work = effort(spec, source, target, passes, find_gpu("H100"))
        assert work.host_memory_bytes is not None
        return walk.memory, walk.least_memory, work.host_memory_bytes.value

    (memory, least, host), (more, same, more_host) = sizes(128), sizes(4096)
    assert more < memory and more_host > host + (60 << 30), "they went to the machine's memory"
    assert least == same < memory


def test_the_forecast_of_a_processor_stays_what_it_was(made: Plan) -> None:
    """Half of the matrix rate for all but the text that the model writes, which reaches 0.22 of it."""
    source, passes = made.source.ir, made.document.decision.chain
    walk = walk_size(made.spec, source, rewrite(source, passes), passes, this_cpu())
    work = walk.work(source)
    graph = forecast(made.spec, source, rewrite(source, passes), passes, this_cpu())
    seconds = {step.name: step.seconds for step in graph.steps}
    operations = work.forwards + work.hessians + work.compensation
    assert seconds["walk"] == pytest.approx(operations / (product_flops(this_cpu()) * 0.5))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny_llama(tmp_path / "model", blocks=3)
    (tmp_path / "text.txt").write_text("what a card has no room for is refused before it begins. " * 60)
    (tmp_path / "tiny.yaml").write_text(TINY_SPEC)
    return tmp_path


def test_a_device_is_chosen_on_the_command_line(tiny: Path) -> None:
    done = CliRunner().invoke(application(), ["apply", "tiny.yaml", "--device", "cpu", "-o", "made"])
    assert done.exit_code in (0, 4), done.output
    assert read_certificate(tiny / "made" / "certificate.json").steps
    for command in (["apply", "tiny.yaml", "-o", "other"], ["plan", "tiny.yaml", "--measure"]):
        for device, said in (("cudda", "unknown device 'cudda'"), ("cuda:0", "no card")):
            failed = CliRunner().invoke(application(), [*command, "--device", device])
            assert isinstance(failed.exception, InputError), failed.output
            assert said in failed.exception.message
    assert not (tiny / "other").exists() and not (tiny / ".other.work").exists()


def test_a_card_that_torch_cannot_use_is_said_before_the_work(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "card_names", lambda: (_H100,))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    for command in (["apply", "none.plan.json"], ["plan", "none.yaml", "--measure"]):
        done = CliRunner().invoke(application(), command)
        assert f"Note     the processor computes: this machine has {_H100}, but torch" in done.stderr
        assert "Note" not in CliRunner().invoke(application(), [*command, "--device", "cpu"]).stderr


def test_the_candidates_are_tried_on_the_device_that_was_asked_for(tiny: Path) -> None:
    done = CliRunner().invoke(application(), ["plan", "tiny.yaml", "--measure", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert load_plan(tiny / "tiny.plan.json").decision.state == "resolved"


def on_card(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """A card of 12 GiB with so much free; no work could begin on it here."""
    card = torch.device("cuda", 0)
    monkeypatch.setattr(apply_module, "compute_devices", lambda asked: (card,))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: _H100)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: _Properties())
    monkeypatch.setattr(devices, "free_bytes", lambda device: free)
    monkeypatch.setattr(devices, "card_holders", lambda uuid: ())


def test_work_that_a_card_has_no_room_for_is_refused_before_it_begins(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_card(monkeypatch, 1 << 20)
    with pytest.raises(DoesNotFitError, match="are needed for the work") as error:
        apply("tiny.yaml", tiny / "made")
    assert "fewer or shorter calibration samples" in str(error.value.remedy)
    assert "--device cpu" in str(error.value.remedy)
    assert not (tiny / "made").exists() and not (tiny / ".made.work").exists()


def test_the_forecast_for_what_computes_is_held_against_the_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan made for another machine says nothing of this one's seconds."""
    document = plan("tiny.yaml").document
    elsewhere = replace(document.decision.apply, device="another", seconds=Quantity(9e9, 9e9, 9e9, Basis.ASSUMED))
    moved = replace(document, chosen=replace(document.decision, apply=elsewhere, apply_on_card=None))
    result = apply(moved, tiny / "made", on=Computing("cpu"))
    said = {check.name: check for check in result.certificate.checks}["seconds of work"].predicted
    assert "9000000000" not in said
    seen: list[Any] = []
    monkeypatch.setattr(apply_module, "effort", lambda *arguments: seen.append(arguments))
    save(document, tiny / "again.plan.json")
    again = apply(document, tiny / "again", on=Computing("cpu"))
    assert not seen, "made here: the plan's own forecast"
    assert {step.expected_seconds for step in again.certificate.steps} & set(document.decision.apply.steps.values())


def test_a_card_too_small_for_the_model_is_told_to_need_a_text_and_its_figures_are_those_of_the_walk() -> None:
    text = "model: {}\ntarget: {{ gpu: RTX 4090 }}\nengine: vllm\npasses: {{ quantize: {{ formats: [w4a16-g128] }} }}\n"
    for model, told in (("Qwen/Qwen3-32B", True), ("Qwen/Qwen3-4B", False)):
        chosen = plan(parse_spec(text.format(model) + "goals: { confidence: 50% }\n")).document.decision
        assert chosen.apply_on_card is not None
        assert chosen.apply_on_card.memory_bytes.low < find_gpu("RTX 4090").memory_bytes.value
        assert any("name a text" in note for note in chosen.notes) == told
