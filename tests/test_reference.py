"""The pages of reference say everything that the code has: keys with meaning and example, options, figures, public names."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from typer.main import get_command

import tightfit
from planner.choice.capacity import Capacity
from planner.cli.main import application
from planner.plan.effort import Effort
from planner.quality.expected import Quality
from planner.spec.parse import parse_spec
from reference import cli, documents, python, spec
from targets.engines.engine import KVEstimate, Memory, SpeedEstimate

DOCS = Path(__file__).parents[1] / "docs"
ROWS = [line for line in spec.page().splitlines() if re.match(r"\| `", line)]
#: Blocks of code, with what stands behind the language.
CODE = re.findall(r"```python([^\n]*)\n(.+?)```", (DOCS / "python.md").read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("`")[1])
def test_a_key_of_the_spec_is_told_with_what_it_takes_and_an_example(row: str) -> None:
    key, means, takes, default, example = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1])
    assert means and takes and default
    assert re.fullmatch(rf"`{key.split('`')[1]}: .+`", example)


def test_examples_of_the_top_make_a_spec() -> None:
    top = spec.page().partition("## `target`")[0]
    written = dict(re.findall(r"`(\w+): ([^`]+)` \|$", top, re.MULTILINE))
    text = "\n".join(f"{key}: {value}" for key, value in written.items() if key not in ("evaluation", "workload"))
    assert parse_spec(text).launch == ("compose",)


def test_every_command_and_option_is_told() -> None:
    page, commands = cli.page(), get_command(application()).commands  # type: ignore[attr-defined]
    assert [name for name in commands if f"## optimize {name}\n" not in page] == []
    said = [(name, each.opts, vars(each).get("help")) for name in commands for each in commands[name].params]
    assert [option for option in said if not option[2]] == []
    assert [options for _, options, _ in said if options[0].startswith("-") and f"`{options[0]}`" not in page] == []


def test_every_link_within_the_documents_page_leads_somewhere() -> None:
    page = documents.page()
    heads = {head.lower() for head in re.findall(r"^##+ (\S+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\(#(\w+)\)", page)) <= heads


@pytest.mark.parametrize(
    "kind", [Memory, KVEstimate, SpeedEstimate, Capacity, Quality, Effort], ids=lambda kind: kind.__name__
)
def test_every_figure_is_defined(kind: type) -> None:
    page = (DOCS / "figures.md").read_text("utf-8")
    about = {"notes", "device"}
    assert [field.name for field in fields(kind) if field.name not in about and f"`{field.name}`" not in page] == []  # type: ignore[arg-type]


def test_every_public_name_is_told() -> None:
    page = python.page()
    assert [name for name in tightfit.__all__ if not name.startswith("_") and f"## tightfit.{name}\n" not in page] == []
    assert dir(tightfit) == sorted(tightfit.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", tightfit.__version__)


def test_the_code_on_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for info, code in CODE:
        compiled = compile(code, "docs/python.md", "exec")
        if "takes" not in info:
            exec(compiled, names)
    assert sum("takes" in info for info, _ in CODE) == 1
