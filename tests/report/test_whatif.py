"""The what-if page: controls stand for changes of the spec, the server answers this machine alone, the plan follows in Chromium."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import pytest

from passes.errors import InputError
from passes.ir.sources import open_model
from planner.choice.search import search
from planner.spec.parse import parse_spec
from planner.spec.patch import patched
from planner.whatif import ahead
from planner.whatif.answer import answer, others, searched
from planner.whatif.controls import changes, controls, neighbours, state_of
from planner.whatif.server import Server
from targets.simulation import serving
from tests.conftest import missing
from tests.report.conftest import SPEC

ROOT = Path(__file__).parents[2]
ASKED = parse_spec(SPEC)
KNOWN = controls(ASKED)


def test_controls_stand_where_the_spec_has_them() -> None:
    own = {control.name: control.own for control in KNOWN}
    assert own == {"gpu": "12GB", "context": "8192", "clients": "4", "kv": "any", "loss": "5%"}
    assert all(control.own in control.values for control in KNOWN)
    assert int(next(control for control in KNOWN if control.name == "context").values[0]) >= 1000 + 200


def test_a_move_is_a_change_of_the_spec() -> None:
    state = state_of({"gpu": "L4", "context": "16384", "clients": "8", "kv": "fp8", "loss": "any"}, KNOWN)
    spec = patched(ASKED, changes(state))
    assert (spec.target.gpu, spec.workload.context, spec.workload.concurrency) == ("L4", 16384, 8)
    assert spec.passes.kv_cache == ("fp8",) and not spec.goals.asks_quality
    assert state_of({"clients": "4", "kv": "any"}, KNOWN) == {}


@pytest.mark.parametrize("asked", [{"context": "17"}, {"colour": "red"}, {"gpu": "Voodoo 2"}])
def test_what_no_control_has_is_refused_with_what_there_is(asked: dict[str, str]) -> None:
    with pytest.raises(InputError) as refused:
        state_of(asked, KNOWN)
    assert refused.value.remedy


def test_neighbours_are_one_move_away() -> None:
    near = list(neighbours({"clients": "8"}, KNOWN))
    assert {"clients": "8", "context": "16384"} in near and {} in near and {"clients": "8", "kv": "fp8"} in near
    assert all(len(set(state.items()) ^ {("clients", "8")}) <= 2 for state in near)


def test_an_answer_is_what_a_plan_of_the_changed_spec_is() -> None:
    source = open_model(ASKED.model)
    state = {"context": "16384", "kv": "fp8"}
    found = searched(ASKED, source, state)
    told, near = answer(found, state), others(found)
    chosen = search(patched(ASKED, changes({"context": "16384", "kv": "fp8"})), source.ir).chosen
    assert chosen is not None and told.meets and told.head.startswith(chosen.candidate.label)
    assert told.patch == "workload: {context: 16384}, passes: {kv_cache: [fp8]}"
    assert told.memory is not None and {row.name for row in told.goals} >= {"TTFT", "decode", "perplexity"}
    assert near and all(why and label != chosen.candidate.label for label, why in near)
    nothing = searched(ASKED, source, {"gpu": "Radeon"})
    refused = answer(nothing, {"gpu": "Radeon"})
    assert not refused.meets and refused.memory is None and refused.said and not others(nothing)


def test_a_load_is_simulated_once_for_all_that_run_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[object] = []
    counted: list[int] = []
    real = serving.simulate
    monkeypatch.setattr(serving, "simulate", lambda *given: (runs.append(given), real(*given))[1])
    source, heads = open_model(ASKED.model), []
    for method in ("rtn", "gptq"):
        passes = f"passes: {{ quantize: {{ formats: [w8a16-channel], methods: [{method}] }} }}"
        found = searched(parse_spec(SPEC[: SPEC.index("passes:")] + passes), source, {"clients": "2"})
        others(found)
        heads.append(answer(found, {"clients": "2"}).head)
        counted.append(len(runs))
    assert heads[0] != heads[1] and counted[0] == counted[1] > 0


def test_what_is_asked_does_not_wait_for_a_forecast_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forecast that a pool has taken on cannot be cancelled, begun or not: what is asked is planned beside it."""
    asked, forecasts = ThreadPoolExecutor(1, "asked"), ThreadPoolExecutor(1, "forecasts")
    pools, held, planned = iter((asked, forecasts)), Event(), list[dict[str, str]]()

    def plan(state: dict[str, str], part: str) -> str:
        planned.append(state)
        if current_thread().name.startswith("forecasts"):
            held.wait(30)
        return f"{current_thread().name}: {state}"

    monkeypatch.setattr(ahead, "ProcessPoolExecutor", lambda *given, **more: next(pools))
    monkeypatch.setattr(ahead, "_answered", plan)
    plans = ahead.Ahead(ASKED, open_model(ASKED.model), KNOWN)
    try:
        assert plans.ask({}).startswith("asked")
        begun = next(iter(neighbours({}, KNOWN)))
        assert plans.ask(begun) == f"asked_0: {begun}"  # while its forecast is held
        held.set()
        assert plans.ask(begun) == f"asked_0: {begun}"
        assert plans.ask({}).startswith("asked") and planned.count({}) == 1, "an answer that is there is shown at once"
    finally:
        held.set()
        plans.close()


def test_the_server_answers_this_machine_alone() -> None:
    server = Server(ASKED)
    try:
        host = server.url.removeprefix("http://").rstrip("/")
        assert host.startswith("127.0.0.1:")
        assert server.answer(host, "/")[0] is HTTPStatus.OK
        assert server.answer("elsewhere.example", "/")[0] is HTTPStatus.FORBIDDEN
        assert server.answer(host, "/etc/passwd")[0] is HTTPStatus.NOT_FOUND
        for part in ("plan", "others"):
            status, said = server.answer(host, f"/{part}?context=17")
            assert status is HTTPStatus.BAD_REQUEST and "one of" in said
    finally:
        server.close()


def test_what_cannot_be_served_is_said_before_an_address() -> None:
    with pytest.raises(InputError, match="unknown model"):
        Server(ASKED.model_copy(update={"model": "nosuch/model"}))
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as taken,
        pytest.raises(InputError, match="port"),
    ):
        Server(ASKED, taken.server_port)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("whatif")
    (folder / "spec.yaml").write_text(SPEC)
    command = [sys.executable, "-m", "planner.cli", "serve-ui", str(folder / "spec.yaml")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0]
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow
def test_the_plan_follows_the_controls_in_a_browser(url: str, browser_python: Path) -> None:
    drive = Path(__file__).with_name("drive_whatif.py")
    done = subprocess.run([browser_python, drive, url], capture_output=True, text=True, check=False, timeout=300)
    if "Executable doesn't exist" in done.stderr:
        missing("no chromium on PATH", "`make browser` installs it")
    assert done.returncode == 0, done.stderr
    seen: Any = json.loads(done.stdout)
    assert seen["trouble"] == []
    assert seen["first"]["hash"] == seen["again"]["hash"] == "" and seen["first"]["bars"] >= 4
    assert seen["context"]["hash"] == "#context=16384" and "workload: {context: 16384}" in seen["context"]["text"]
    assert "KV cache fp8" in seen["cache"]["head"] and seen["tip"].startswith("weights: ")
    assert "max_perplexity_increase: null" in seen["loss"]["text"] and "no goal" in seen["loss"]["text"]
    assert seen["linked"]["head"] == seen["cache"]["head"] and seen["linked"]["hash"] == seen["cache"]["hash"]
    assert seen["again"]["head"] == seen["first"]["head"]
    assert seen["near"].startswith("Nearest of those that lost")
    assert seen["wide"] == {"desk": False, "phone": False}
