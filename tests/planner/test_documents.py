"""Documents are what their schemas say, and what earlier states of this version wrote is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from passes.errors import InputError
from planner.certificate import NAME, read_certificate
from planner.check import check
from planner.documents.listed import DOCUMENTS
from planner.documents.schema import schema
from planner.fleet import Fleet, Member
from planner.plan import codec
from planner.plan.codec import to_json, upgraded
from planner.plan.document import digest
from planner.plan.make import plan
from planner.plan.saved import PLAN, load_plan, read_plan, save
from planner.verifying.result import FilesReport
from targets.machine.live import look

#: A plan and a certificate of a tiny model as the code of that day wrote them.
EARLIER = Path(__file__).with_name("data") / "2026-11-23"
_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def refused(value: Any, by: Mapping[str, Any], whole: Mapping[str, Any], place: str = "") -> list[str]:
    """Where a value is not what a schema says; of JSON Schema what ours are written in."""
    if "$ref" in by:
        return refused(value, whole["$defs"][by["$ref"].rpartition("/")[2]], whole, place)
    if "anyOf" in by:
        return [] if any(not refused(value, each, whole) for each in by["anyOf"]) else [f"{place}: {value!r:.60}"]
    if "enum" in by:
        return [] if value in by["enum"] else [f"{place}: {value!r}"]
    if "type" not in by:
        return []
    kinds = by["type"] if isinstance(by["type"], list) else [by["type"]]
    if not any(_is(value, kind) for kind in kinds):
        return [f"{place}: {value!r:.60} is no {' or '.join(kinds)}"]
    found: list[str] = []
    if isinstance(value, dict):
        found += [f"{place}.{key} is missing" for key in by.get("required", ()) if key not in value]
        for key, inner in value.items():
            inside = by.get("properties", {}).get(key, by.get("additionalProperties"))
            found += (
                [f"{place}.{key} is not known"]
                if inside is False
                else refused(inner, inside or {}, whole, f"{place}.{key}")
            )
    if isinstance(value, list):
        found += [each for n, inner in enumerate(value) for each in refused(inner, by["items"], whole, f"{place}.{n}")]
    return found


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        return isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, _TYPES[kind])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_schema_names_its_version_and_refers_to_nothing_that_is_not_there(name: str) -> None:
    document = schema(name)
    assert document["$id"] == f"tightfit:{name}:1"
    references = {each.partition('"')[0] for each in json.dumps(document).split('"#/$defs/')[1:]}
    assert references <= document["$defs"].keys()


def test_what_is_written_is_what_its_schema_says() -> None:
    made = plan({"model": "Qwen/Qwen2.5-7B-Instruct", "target": {"gpu": "rtx-4090"}, "goals": {"ttft": {"p95": "2 s"}}})
    assert refused(to_json(made.document), schema("plan"), schema("plan")) == []
    answer = check("Llama-3.3-70B-Instruct", "RTX 4090", context="8k").as_json()
    assert refused(answer, schema("check"), schema("check")) == []
    assert refused({**answer, "fits": "no"}, schema("check"), schema("check")) == [".fits: 'no' is no boolean"]


def test_what_stands_beside_a_documents_fields_is_in_its_schema(tmp_path: Path) -> None:
    machine = {"machine": to_json(look())}
    answer = check("Llama-3.3-70B-Instruct", "RTX 4090", context="8k").as_json()
    assert refused(answer | machine, schema("check"), schema("check")) == []
    fleet = Fleet((Member("a.yaml", "a-tightfit", 0, "w4a16"), Member("b.yaml", "b-tightfit", 3, "too large", "less")))
    assert refused(to_json(fleet) | {"exit_code": fleet.exit_code}, schema("fleet"), schema("fleet")) == []
    files = {"files": to_json(FilesReport(True, "0" * 64, (), True)), "origin": None}
    shown = to_json(read_certificate(EARLIER / NAME)) | files
    assert refused(shown, schema("shown"), schema("shown")) == []
    assert refused(shown | {"soaked": 1}, schema("shown"), schema("shown")) == [".soaked is not known"]


@pytest.mark.parametrize("words", [("check", "--gpu", "A100"), ("plan", "nofile.yaml"), ("show", "--bad")])
def test_an_error_is_a_document_with_a_schema(optimize: Any, words: tuple[str, ...]) -> None:
    code, out, _ = optimize(*words, "--json")
    assert code == 2 and refused(json.loads(out), schema("error"), schema("error")) == []


def test_the_command_prints_them(optimize: Any) -> None:
    assert json.loads(optimize("schema", "plan")[1]) == schema("plan")
    code, _, said = optimize("schema", "plann")
    assert code == 2 and "plan" in said


def test_what_an_earlier_state_wrote_is_read() -> None:
    document, certificate = load_plan(EARLIER / PLAN), read_certificate(EARLIER / NAME)
    assert document.decision.tensor_bytes == certificate.tensor_bytes
    assert certificate.plan_digest and certificate.holds


def test_a_document_of_a_version_before_is_brought_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "FORMAT_VERSION", "3")
    steps = {str(n): lambda document, n=n: {**document, "format_version": str(n + 1), f"new {n}": n} for n in (1, 2)}
    monkeypatch.setattr(codec, "UPGRADES", steps)
    assert upgraded({"format_version": "1"}, "it") == {"format_version": "3", "new 1": 1, "new 2": 2}
    with pytest.raises(InputError, match="'9', this tightfit reads 1 and 2 and 3"):
        upgraded({"format_version": "9"}, "it")


def _of_before(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[Path, Path]:
    """A plan and a certificate of a version in which two of their keys had other names, in a folder; here is what reads that version."""

    def renamed(document: Mapping[str, Any], names: Mapping[str, str], version: str) -> dict[str, Any]:
        return {names.get(key, key): value for key, value in document.items()} | {"format_version": version}

    names = {"searched": "candidates", "losses": "errors"}
    back = {older: newer for newer, older in names.items()}
    monkeypatch.setattr(codec, "UPGRADES", {"0": lambda document: renamed(document, back, "1")})
    for name in (PLAN, NAME):
        document = renamed(json.loads((EARLIER / name).read_text()), names, "0")
        if "digest" in document:
            document["digest"] = digest(document)
        (folder / name).write_text(json.dumps(document))
    return folder / PLAN, folder / NAME


def test_documents_of_the_version_before_are_read_shown_and_saved_as_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimize: Any
) -> None:
    plan_file, certificate_file = _of_before(monkeypatch, tmp_path)
    document = load_plan(plan_file)
    assert document.searched == load_plan(EARLIER / PLAN).searched and document.format_version == "1"
    assert read_plan(plan_file) == document
    assert read_certificate(certificate_file) == read_certificate(EARLIER / NAME)
    save(document, tmp_path / "again.json")
    assert load_plan(tmp_path / "again.json") == document
    assert optimize("diff", plan_file, EARLIER / PLAN)[0] == 0
    code, out, _ = optimize("report", plan_file, "-o", tmp_path / "page.html")
    assert code == 0 and (tmp_path / "page.html").is_file(), out


@pytest.mark.parametrize("command", ["apply", "explain", "diff", "report", "launch", "drift"])
def test_a_document_of_a_newer_version_is_refused_with_what_to_do(tmp_path: Path, optimize: Any, command: str) -> None:
    document = json.loads((EARLIER / PLAN).read_text())
    (tmp_path / "a.plan.json").write_text(json.dumps({"format_version": "2", "picked": document["chosen"]}))
    further = {
        "explain": ["why"],
        "diff": [EARLIER / PLAN],
        "drift": ["--engine-version", "0.31"],
        "launch": ["--target", "compose"],
    }.get(command, [])
    code, _, said = optimize(command, tmp_path / "a.plan.json", *further)
    assert code == 2
    assert "has format '2', this tightfit reads 1" in said and "bring this one up to date" in said, said


@pytest.mark.parametrize(
    ("said", "remedy"), [("2", "bring this one up to date"), (None, "make it again"), (1, "make it again")]
)
def test_another_version_is_told_with_what_to_do(said: Any, remedy: str) -> None:
    with pytest.raises(InputError) as refusal:
        upgraded({"format_version": said}, "a.plan.json")
    assert remedy in (refusal.value.remedy or "")


def test_a_name_that_no_file_can_have_is_no_plan() -> None:
    with pytest.raises(InputError, match="not a file's name"):
        load_plan("\0")
