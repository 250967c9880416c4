"""A finished result is kept until it is said to be replaced; its own plan, planned anew or not, may bring it up to date."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from passes.blocks.stream import BlockStream
from passes.errors import InputError
from passes.measure import source_states
from passes.run.result_folder import MARKER
from planner.apply import apply
from planner.kept import require_own_place
from planner.plan.document import PlanDocument
from planner.plan.make import plan
from planner.plan.parts.chosen import PlannedEngine
from planner.plan.parts.locked import LockedText
from planner.plan.saved import load_plan
from planner.plan.saved import save as save_plan
from planner.spec.parse import parse_spec
from tests import forked
from tests.forked import Ended
from tests.planner.percents import percents, unexplained
from tests.walk.conftest import TINY_SPEC, save_tiny_llama

_MEASURED = """
model: model
target: { gpu: rtx-4090 }
engine: exllamav2
workload: { context: 128, concurrency: 1, input_tokens: 32, output_tokens: 16 }
passes: { prune: { depth: 1 }, quantize: { formats: [exl2-4.0], dense: false }, kv_cache: [auto] }
calibration: { dataset: text.txt, samples: 4, length: 32 }
evaluation: { dataset: python-reference, samples: 2, length: 32 }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny_llama(tmp_path / "model", blocks=3)
    (tmp_path / "text.txt").write_text("what is finished is kept until somebody says that it may go. " * 60)
    (tmp_path / "tiny.yaml").write_text(TINY_SPEC)
    return tmp_path


def optimize(folder: Path, *arguments: str, encoding: str = "utf-8") -> Ended:
    return forked.run(
        forked.optimize, *arguments, folder=folder, environment={"PYTHONIOENCODING": encoding, "COLUMNS": "160"}
    )


def content(folder: Path) -> Mapping[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_another_plan_is_refused_and_replaces_only_when_told(folder: Path) -> None:
    first = optimize(folder, "apply", "tiny.yaml")
    assert first.returncode in (0, 4), first.stderr
    made = folder / "tiny-tightfit"
    before, everything = content(made), sorted(path.name for path in (folder / ".tiny-tightfit.work").iterdir())
    assert percents(first.stdout)
    assert unexplained(first.stdout, json.loads((made / "certificate.json").read_text())) == []

    (folder / "tiny.yaml").write_text(TINY_SPEC.replace("w4a16-g32", "w4a16-g64"))
    second = optimize(folder, "apply", "tiny.yaml")
    assert second.returncode == 2 and "Traceback" not in second.stderr
    assert "finished result of another plan: model, vllm: 4 bit in groups of 32 by GPTQ (w4a16-g32)" in " ".join(
        second.stderr.split()
    ), second.stderr
    assert "measured KL" in second.stderr and "differs in the passes" in second.stderr
    assert "-o" in second.stderr and "--replace" in second.stderr
    assert content(made) == before
    assert sorted(path.name for path in (folder / ".tiny-tightfit.work").iterdir()) == everything, "no work was done"
    refused = json.loads(optimize(folder, "apply", "tiny.yaml", "--json").stdout)["error"]
    assert "--replace" in refused["remedy"]

    elsewhere = optimize(folder, "apply", "tiny.yaml", "-o", "other", encoding="ascii")
    assert elsewhere.returncode in (0, 4), elsewhere.stderr
    assert (elsewhere.stdout + elsewhere.stderr).isascii() and "Done: other" in elsewhere.stdout
    assert content(made) == before

    third = optimize(folder, "apply", "tiny.yaml", "--replace")
    assert third.returncode in (0, 4), third.stderr
    assert json.loads((made / "plan.json").read_text())["chosen"]["passes"] != []
    assert "w4a16-g64" in json.loads((made / "plan.json").read_text())["chosen"]["label"]
    shown = optimize(folder, "show", "tiny-tightfit")
    assert percents(shown.stdout)
    assert unexplained(shown.stdout, json.loads(optimize(folder, "show", "tiny-tightfit", "--json").stdout)) == []


def test_the_same_plan_does_nothing_again_and_a_new_prediction_is_no_other_plan(folder: Path) -> None:
    first = apply("tiny.yaml")
    again = apply("tiny.yaml")
    assert [step.name for step in again.outcome.steps if not step.reused] == []
    (folder / "tiny.yaml").write_text(TINY_SPEC.replace("context: 128", "context: 256").replace("900%", "800%"))
    renewed = apply("tiny.yaml")
    assert [step.name for step in renewed.outcome.steps if not step.reused] == []
    assert renewed.certificate.plan_digest != first.certificate.plan_digest


def test_choices_that_are_measured_are_no_other_plan(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(_MEASURED)
    document = plan("tiny.yaml").document
    assert document.decision.state == "bounded"
    result = apply(document)
    assert json.loads((result.out / "plan.json").read_text())["chosen"]["passes"] != list(document.decision.passes)
    again = apply(document)
    assert [step.name for step in again.outcome.steps if not step.reused] == []
    (folder / "tiny.yaml").write_text(_MEASURED.replace("exl2-4.0", "exl2-5.0"))
    with pytest.raises(InputError, match="differs in the passes"):
        apply(plan("tiny.yaml").document)


def test_another_plan_that_finished_in_the_meantime_is_kept_too(folder: Path) -> None:
    """One that was not there when the run began, and is when this one holds the place."""
    save_plan(plan("tiny.yaml").document, folder / "one.json")
    (folder / "other.yaml").write_text(TINY_SPEC.replace("w4a16-g32", "w4a16-g64"))
    finished: list[Any] = []

    def meanwhile(event: Any) -> None:
        if event.step == "model" and not finished:
            finished.append(apply(load_plan(folder / "one.json"), folder / "made", work=folder / "work"))

    with pytest.raises(InputError, match="another plan"):
        apply("other.yaml", folder / "made", progress=meanwhile)
    assert "w4a16-g32" in json.loads((folder / "made" / "plan.json").read_text())["chosen"]["label"]


_TEXT = LockedText("text.txt", 4, 32, 0, "d")
_OTHER_TEXT = LockedText("other.txt", 4, 32, 0, "e")


@cache
def _base() -> PlanDocument:
    """The plan of a model that nothing has to be read for."""
    spec = "model: Llama-3.2-1B-Instruct\ntarget: { gpu: rtx-4090 }\nengine: vllm\n"
    document = plan(parse_spec(spec)).document
    return replace(document, lock=replace(document.lock, calibration=_TEXT, evaluation=_TEXT))


def _plan(engine: str = "vllm", chosen: Mapping[str, Any] = MappingProxyType({}), **lock: Any) -> PlanDocument:
    """The base with another engine, and other values in what was chosen and in the lock."""
    base = _base()
    decided = replace(
        base.decision, **{"engine": PlannedEngine(engine, "1"), "passes": ({"pass": "quantize"},), **chosen}
    )
    return replace(base, chosen=decided, lock=replace(base.lock, **lock))


def _result(folder: Path, document: PlanDocument) -> Path:
    folder.mkdir()
    (folder / MARKER).write_text('{"key": "k"}')
    save_plan(document, folder / "plan.json")
    return folder


@pytest.mark.parametrize(
    ("other", "calibrated", "differs"),
    [
        ({}, True, None),
        ({"tightfit": "2", "data": {"gpus.yaml": "y"}, "chosen": {"label": "another"}}, True, None),
        ({"evaluation": _OTHER_TEXT}, True, None),
        ({"engine": "vllm-cpu"}, True, "the engine"),
        ({"header_digest": "i"}, True, "the model"),
        ({"model": "n"}, True, "the model"),
        ({"chosen": {"passes": ({"pass": "kv_cache"},)}}, True, "the passes"),
        ({"calibration": _OTHER_TEXT}, True, "the calibration text"),
        ({"calibration": _OTHER_TEXT}, False, None),
        ({"model": "n", "engine": "vllm-cpu"}, False, "the model and the engine"),
    ],
)
def test_what_makes_another_result(
    other: dict[str, Any], calibrated: bool, differs: str | None, tmp_path: Path
) -> None:
    made = _result(tmp_path / "made", _plan())
    with nullcontext() if differs is None else pytest.raises(InputError, match=f"differs in {differs}\n"):
        require_own_place(made, _plan(**other), calibrated=calibrated)


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda made: (made / "plan.json").unlink(), True),
        (lambda made: (made / "plan.json").write_text("{"), True),
        (lambda made: (made / "plan.json").write_text('{"chosen": null}'), True),
        (lambda made: save_plan(replace(_base(), chosen=None), made / "plan.json"), True),
        (lambda made: made.rename(made.with_name(".made.old")), True),
        (lambda made: (made / MARKER).write_text(""), False),
        (lambda made: made.rename(made.with_name("made.partial")), False),
    ],
    ids=["no plan", "half a plan", "no choice", "nothing chosen", "put aside", "half removed", "unfinished"],
)
def test_a_result_that_cannot_be_read_is_kept_and_an_unfinished_one_is_in_nobodys_way(
    damage: Callable[[Path], object], kept: bool, tmp_path: Path
) -> None:
    made = _result(tmp_path / "made", _plan())
    damage(made)
    with pytest.raises(InputError, match="finished result of another plan") if kept else nullcontext():
        require_own_place(made, _plan(engine="vllm-cpu"), calibrated=True)


def test_the_source_is_evaluated_once_for_all_plans_and_outputs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(spec: str, out: str, cache: str) -> tuple[Any, list[int]]:
        """What was measured, and at which block the source's and the result's evaluation began."""
        monkeypatch.setenv("TIGHTFIT_HOME", str(folder / cache))
        began.clear()
        (folder / f"{out}.yaml").write_text(spec)
        certificate = apply(folder / f"{out}.yaml", folder / out).certificate
        assert certificate is not None
        return certificate.quality, list(began)

    began: list[int] = []
    reached = BlockStream.reached
    monkeypatch.setattr(BlockStream, "reached", lambda stream: began.append(at := reached(stream)) or at)
    assert made(TINY_SPEC, "four", "here")[1] == [0, 0]
    other = TINY_SPEC.replace("w4a16-g32", "w8a16-channel")
    quality, starts = made(other, "eight", "here")
    assert starts == [3, 0]
    assert made(other, "again", "elsewhere") == (quality, [0, 0])
    assert made(other.replace("samples: 2", "samples: 3"), "longer", "here")[1] == [0, 0]


def test_of_kept_evaluations_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIGHTFIT_HOME", str(tmp_path))
    monkeypatch.setattr(source_states, "_MOST", 2)
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / "00000.safetensors").write_bytes(b"x" * 100)
    root = tmp_path / "judged"
    for age, key in enumerate(("a", "b", "c")):
        source_states.keep(key, tmp_path / "states")
        if (root / key).exists():
            os.utime(root / key, (age, age))
    assert sorted(each.name for each in root.iterdir()) == ["b", "c"]
    monkeypatch.setattr(source_states, "_MOST_BYTES", 50)
    source_states.keep("d", tmp_path / "states")
    assert not (root / "d").exists()
    source_states.bring("b", tmp_path / "brought")
    assert (tmp_path / "brought" / "00000.safetensors").read_bytes() == b"x" * 100
