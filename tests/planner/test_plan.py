"""The Plan document: complete, locked, stale when an input moves, refused when edited."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from passes.errors import DoesNotFitError, InputError, StalePlanError
from planner.check import check
from planner.cli.main import application
from planner.explain import diff as difference
from planner.plan.codec import to_json
from planner.plan.document import digest, portable, require_executable, spec_of
from planner.plan.lock import require_fresh, staleness
from planner.plan.make import Plan, plan
from planner.plan.saved import load_plan, save
from planner.spec.parse import parse_spec
from targets.engines.engine import find_engine
from targets.machine.calibrate import store
from targets.machine.profile import Profile
from targets.quantity import Basis

SPEC = "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: rtx-4090 }\nworkload: { context: 4096 }\n"


@pytest.fixture(scope="module")
def made() -> Plan:
    return plan(parse_spec(SPEC))


def test_the_document_has_the_keys_of_the_contract(made: Plan) -> None:
    document = to_json(made.document)
    assert {"format_version", "chosen", "rejected", "pareto", "lock", "searched", "digest"} <= set(document)
    assert {"engine", "passes", "settings", "memory", "kv_cache", "speed", "quality", "executable", "missing"} <= set(
        document["chosen"]
    )
    json.dumps(document)


def test_the_same_spec_gives_the_same_plan(made: Plan) -> None:
    assert plan(parse_spec(SPEC)).document == made.document


def test_what_is_hashed_holds_no_path_and_no_time(made: Plan) -> None:
    said = to_json(portable(made.document))
    assert str(Path.cwd()) not in json.dumps(said)
    assert digest(said) == made.document.digest


def test_a_model_without_weights_can_be_planned_but_not_applied(made: Plan) -> None:
    assert made.document.decision.executable is False
    with pytest.raises(InputError, match="weights"):
        require_executable(made.document)


def test_a_plan_that_found_nothing_is_not_applied() -> None:
    nothing = plan(parse_spec(SPEC + "goals: { decode: 100000 tok/s }\n"))
    assert not nothing.feasible
    with pytest.raises(DoesNotFitError):
        require_executable(nothing.document)


def test_a_stale_plan_says_what_moved(made: Plan) -> None:
    moved = replace(made.document, lock=replace(made.document.lock, header_digest="another"))
    with pytest.raises(StalePlanError, match="header_digest"):
        require_fresh(moved, made.spec, made.source)
    require_fresh(made.document, made.spec, made.source)


def test_a_change_of_config_json_alone_makes_a_plan_stale(made: Plan) -> None:
    config = dict(made.source.ir.config) | {"rope_theta": 1.0}
    changed = replace(made.source, ir=replace(made.source.ir, config=config))
    with pytest.raises(StalePlanError, match="config_digest"):
        require_fresh(made.document, made.spec, changed)


def test_a_change_of_the_tools_own_data_makes_a_plan_stale(made: Plan) -> None:
    data = dict(made.document.lock.data) | {"gpus.yaml": "another"}
    moved = replace(made.document, lock=replace(made.document.lock, data=data))
    with pytest.raises(StalePlanError, match=r"data\.gpus\.yaml"):
        require_fresh(moved, made.spec, made.source)


def test_a_spec_that_was_edited_makes_its_plan_stale(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(SPEC)
    document = plan(file).document
    assert staleness(document) == []
    file.write_text(SPEC.replace("4096", "8192"))
    assert staleness(document) == ["spec.workload.context: 4,096 tokens → 8,192 tokens"]


def test_a_model_that_is_gone_is_said_when_its_plan_is_read(made: Plan) -> None:
    assert made.document.places is not None
    gone = replace(made.document, places=replace(made.document.places, model="/no/such/model.gguf"))
    assert "model.gguf" in staleness(gone)[0]


def test_a_plan_that_travelled_is_shown(made: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    save(portable(made.document), path)
    document = load_plan(path)
    assert staleness(document) == []
    done = CliRunner().invoke(application(), ["show", str(path)])
    assert done.exit_code == 0 and "Plan:" in done.output


def test_a_saved_plan_is_read_back(made: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.plan.json"
    save(made.document, path)
    assert load_plan(path) == made.document
    assert made.document.decision.chain == made.result.chosen.candidate.passes  # type: ignore[union-attr]
    assert spec_of(made.document) == made.spec


@pytest.mark.parametrize(
    "place", ["chosen.tensor_bytes", "chosen.goals", "chosen.memory", "spec.workload", "lock.gpu", "spec"]
)
def test_an_edit_anywhere_is_noticed(made: Plan, place: str, tmp_path: Path) -> None:
    edited = json.loads(json.dumps(to_json(made.document)))
    *parents, last = place.split(".")
    inside = edited
    for key in parents:
        inside = inside[key]
    inside[last] = None
    path = tmp_path / "a.plan.json"
    path.write_text(json.dumps(edited))
    with pytest.raises(InputError, match="edited"):
        load_plan(path)


def test_a_plan_that_travelled_can_be_read_but_not_applied(made: Plan) -> None:
    with pytest.raises(InputError, match="left the place"):
        spec_of(portable(made.document))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"chosen": null}'])
def test_what_is_no_plan_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match="no plan"):
        load_plan(path)


def test_diff_names_the_input_that_moved_and_the_choice_that_follows(made: Plan) -> None:
    other = plan(parse_spec(SPEC.replace("rtx-4090", "l40s")))
    change = difference.diff(made.document, other.document)
    assert "lock.gpu.name" in {c.what for c in change.inputs}
    assert difference.diff(made.document, made.document) == difference.PlanDifference((), ())


def test_two_results_differ_in_what_was_measured(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def result(kl: float) -> Any:
        quality = SimpleNamespace(kl=kl, log_ppl_increase=0.02)
        return made.document, SimpleNamespace(quality=quality, holds=True, tensor_bytes=1 << 30)

    read = {"a": result(0.02), "b": result(0.03), "plan": (made.document, None)}
    monkeypatch.setattr(difference, "_read", lambda what: read[str(what)])
    [change] = difference.diff_files(Path("a"), Path("b")).measured
    assert difference.told(change) == ("KL divergence", "0.02 nats", "0.03 nats")
    assert difference.diff_files(Path("a"), Path("plan")).measured == ()


def test_a_cache_type_that_no_engine_has_is_said() -> None:
    spec = parse_spec(SPEC + "engine: vllm\npasses: { kv_cache: [q4] }\n")
    with pytest.raises(InputError, match="keeps its cache as q4") as caught:
        plan(spec)
    assert caught.value.remedy == f"vllm has {', '.join(find_engine('vllm').kv_dtypes)}"
    with pytest.raises(InputError, match="no format of"):
        plan(parse_spec(SPEC + "engine: vllm\npasses: { quantize: { formats: [bf16], dense: false } }\n"))


def test_the_plan_knows_what_outside_tools_and_scale_searches_take() -> None:
    def seconds(formats: str, backend: str = "native") -> float:
        passes = (
            f"passes: {{ quantize: {{ formats: [{formats}], dense: false, backend: {backend} }}, kv_cache: [auto] }}\n"
        )
        made = plan(parse_spec(SPEC + "engine: vllm\n" + passes + "calibration: { dataset: self }\n"))
        return made.document.decision.apply.seconds.value

    plain = seconds("gptq-4-g32")
    assert seconds("awq-4-g32") > plain and seconds("gptq-4-g32", "gptqmodel") > plain


def test_plans_and_checks_say_that_a_measurement_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: Plan
) -> None:
    """An older version kept rates that no card has: figures stay the fitted ones, never `measured`."""
    monkeypatch.setenv("TIGHTFIT_HOME", str(tmp_path))
    store(Profile("RTX 4090", {"copy_bytes_per_s": 9e11, "vector_bytes_per_s": 8e11, "bf16_flops": 2e12}, {}))
    chosen = plan(parse_spec(SPEC)).document.decision
    checked = check("Qwen/Qwen2.5-7B-Instruct", "RTX 4090").document
    for document in (chosen, checked):
        assert any("2 TFLOP/s" in note and "not believed" in note for note in document.notes)
        assert document.speed is not None and document.speed.tpot_ms.basis is not Basis.MEASURED
    assert chosen.speed == made.document.decision.speed
