"""Several specs applied together: a folder each, one that fails stops no other, a summary, and an exit code that says the worst."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import pytest

from passes.errors import DoesNotFitError, InputError, TightfitError
from passes.steps.executor import HERE, carried_out, order
from passes.steps.on_ray import _begin
from planner import fleet
from planner.fleet import Fleet, Member, apply_all, carrying, orders
from tests.planner.conftest import run


@dataclass
class _Label:
    label: str


@dataclass
class _Plan:
    decision: _Label


@dataclass
class _Result:
    holds: bool
    plan: _Plan


@pytest.fixture
def applies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path]]:
    """Have `apply` end as the name of each spec says, and note what it was asked."""
    asked = []

    def apply(what: Path, out: Path, **how: Any) -> _Result:
        asked.append((what, out))
        if what.stem == "unfit":
            raise DoesNotFitError("nothing fits", remedy="a larger card")
        if what.stem == "wrong":
            raise InputError("no such key", remedy="mend it")
        if what.stem == "defect":
            raise ZeroDivisionError("division by zero")
        return _Result(what.stem != "missing", _Plan(_Label(f"as {what.stem}")))

    monkeypatch.setattr(fleet, "apply", apply)
    monkeypatch.delenv("TIGHTFIT_DEBUG", raising=False)
    return asked


def specs(folder: Path, *names: str) -> list[Path]:
    return [folder / f"{name}.yaml" for name in names]


def test_each_has_a_folder_of_its_own_and_none_stops_the_others(tmp_path: Path, applies: list[Any]) -> None:
    asked = orders(specs(tmp_path, "a", "unfit", "defect", "b"), tmp_path / "out", tmp_path / "work")
    ended = list(apply_all(asked))
    assert [Path(member.out).name for member in ended] == [f"{n}-tightfit" for n in ("a", "unfit", "defect", "b")]
    assert all(Path(member.out).parent == tmp_path / "out" for member in ended)
    assert [order.work for order in asked] == [tmp_path / "work" / Path(member.out).name for member in ended]
    assert [member.exit_code for member in ended] == [0, 3, 1, 0]
    assert ended[0].said == "as a" and ended[1].remedy == "a larger card"
    assert ended[2].said == "internal error: ZeroDivisionError: division by zero"


def test_two_that_would_have_one_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one/a.yaml and .*two/a.yaml would both be made in a-tightfit"):
        orders([tmp_path / "one" / "a.yaml", tmp_path / "two" / "a.yaml"], None, None)


@pytest.mark.parametrize(("codes", "code"), [((0, 0), 0), ((0, 4), 4), ((4, 3, 2), 3), ((0, 2, 4), 2), ((), 0)])
def test_the_exit_code_is_of_what_failed_else_of_what_misses_a_goal(codes: tuple[int, ...], code: int) -> None:
    assert Fleet(tuple(Member("a", "b", each, "") for each in codes)).exit_code == code


def test_the_command_says_what_became_of_each(
    tmp_path: Path, applies: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = specs(tmp_path, "a", "wrong", "missing")
    code, out, _ = run(monkeypatch, capsys, "apply", *asked, "-o", tmp_path / "out")
    assert code == 2 and "1 of 3 made" in out and "no such key (mend it)" in out and "promise or goal is missed" in out
    code, out, _ = run(monkeypatch, capsys, "apply", *asked, "--json")
    document = json.loads(out)
    assert code == document["exit_code"] == 2 and [each["exit_code"] for each in document["members"]] == [0, 2, 4]
    code, _, err = run(monkeypatch, capsys, "apply", *asked, "--model", tmp_path)
    assert code == 2 and "have no model in common" in err


def test_a_piece_that_fails_takes_those_with_it_that_need_it() -> None:
    done = []

    def make(name: str) -> str:
        done.append(name)
        if name == "b":
            raise InputError("no")
        return name.upper()

    graph: nx.DiGraph[str] = nx.DiGraph()
    for name in "cabd":
        graph.add_node(name, make=lambda name=name: make(name))
    graph.add_edges_from([("b", "d")])
    ended = list(HERE.carry_out(graph))
    assert order(graph) == ("c", "a", "b", "d") and done == ["c", "a", "b"]
    assert [each.value for each in ended] == ["C", "A", None] and ended[-1].error is not None
    with pytest.raises(ZeroDivisionError):
        carried_out("defect", lambda: 1 // 0)


def test_a_card_by_its_number_is_not_ours_to_choose_on_ray() -> None:
    here = [Path(__file__)]
    with (
        pytest.raises(InputError, match="on Ray cuda:1 is not this process's to choose"),
        carrying(here, "ray", "cuda:1"),
    ):
        pass
    with carrying(here, "local", "cuda:1") as executor:
        assert executor is HERE


@pytest.mark.parametrize("names", [["nosuch/*.yaml"], ["nosuch.yaml", "other.plan.json"]])
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_names_of_nothing_are_refused_before_anything_is_loaded(names: list[str], executor: str) -> None:
    program = (
        "import sys; sys.argv = ['optimize', 'apply', *sys.argv[1:]]\n"
        "from planner.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, sorted({'torch', 'transformers', 'ray'} & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *names, "--executor", executor]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("2 []\n"), done.stderr
    assert "no spec at nosuch" in done.stdout + done.stderr


class _NoCluster:
    """Ray where no cluster lets anybody in."""

    exceptions = SimpleNamespace(RayError=type("RayError", (Exception,), {}))
    _private = SimpleNamespace(services=SimpleNamespace(canonicalize_bootstrap_address=lambda _address: None))

    def __init__(self, error: Exception) -> None:
        self.error, self.begun = error, list[dict[str, Any]]()

    def init(self, **how: Any) -> None:
        if how["address"] != "local":
            raise self.error
        self.begun.append(how)


def test_a_cluster_that_is_named_and_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ConnectionError("nobody\nlistens"), _NoCluster.exceptions.RayError("InvalidAuthToken")):
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        ray = _NoCluster(error)
        with pytest.raises(InputError, match=r"no Ray cluster can be used at 10\.0\.0\.1:6379"):
            _begin(ray)
        assert not ray.begun
    monkeypatch.delenv("RAY_ADDRESS")
    ray = _NoCluster(ConnectionError("nobody"))
    _begin(ray)
    assert len(ray.begun) == 1, "one of this machine alone"


def test_a_cluster_that_does_not_come_up_here_is_no_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(_NoCluster):
        def init(self, **how: Any) -> None:
            raise ConnectionError("nobody") if how["address"] != "local" else Exception("The current node timed out.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(TightfitError, match="Ray does not start here: The current node timed out") as caught:
        _begin(Busy(ConnectionError("nobody")))
    assert "less busy" in str(caught.value.remedy)
