"""The pages name modules that are there, and `docs/architecture.md` names every one of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from passes.chain import BACKENDS, PASSES
from passes.formats.format import FORMATS
from passes.ir.quant_config.quant_config import QUANT_CONFIGS
from reference.pages import PAGES as MADE
from targets.engines.engine import ENGINES
from targets.launch.target import LAUNCH_TARGETS

ROOT = Path(__file__).parents[1]
ROOMS = ("passes", "targets", "planner", "tightfit")
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py") if not path.name.startswith("__"))

_PATH = re.compile(r"(?<![\w/.])(?:(?:passes|targets|planner|tightfit|tests|benchmarks|examples|docs)/[\w./-]*[\w/])")
_DOTTED = re.compile(r"(?<![\w/.-])(?:passes|targets|planner|tightfit|benchmarks)(?:\.(?!yaml\b|plan\.json\b)\w+)+")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


#: Groups of entry points, which begin as names of the facade do.
GROUPS = {table.group for table in (PASSES, BACKENDS, FORMATS, QUANT_CONFIGS, ENGINES, LAUNCH_TARGETS)}


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a group of entry points, a module, or an attribute of one, as far as its source says."""
    if dotted in GROUPS:
        return True
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        module, names = ROOT.joinpath(*parts[:end]), parts[end:]
        file = next((file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()), None)
        if file is None and not module.is_dir():
            continue
        return not names or (file is not None and re.search(rf"\b{names[0]}\b", file.read_text("utf-8")) is not None)
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    assert [path for path in _PATH.findall(page.read_text("utf-8")) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_dotted_name_on_a_page_is_there(page: Path) -> None:
    assert [name for name in _DOTTED.findall(page.read_text("utf-8")) if not resolves(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    made = {ROOT / "docs" / path for path in MADE}
    links = {link: (page.parent / link).resolve() for link in _LINK.findall(page.read_text("utf-8"))}
    assert [link for link, file in links.items() if not file.exists() and file not in made] == []


def test_diffs_of_the_page_on_adding_are_the_code_as_it_is() -> None:
    page = (ROOT / "docs" / "extending.md").read_text("utf-8")
    wrong, seen, file = [], 0, ROOT
    for line in "\n".join(re.findall(r"```diff\n(.*?)```", page, re.DOTALL)).splitlines():
        if line.startswith("+++ b/"):
            file = ROOT / line.removeprefix("+++ b/")
            held = set(file.read_text("utf-8").splitlines())
        elif line.startswith(("--- ", "@@ ")) or line[1:].lstrip().startswith("...") or line in ("", "+"):
            continue
        else:
            seen += 1
            wrong += [] if line[1:] in held else [(file.name, line)]
    assert wrong == [] and seen > 100


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_every_dotted_name_in_a_docstring_is_there(module: Path) -> None:
    quoted = re.findall(rf"`({_DOTTED.pattern})`", module.read_text("utf-8"))
    assert [name for name in quoted if not resolves(name)] == []


def test_the_architecture_names_every_module_and_no_other() -> None:
    tree = (
        (ROOT / "docs" / "architecture.md").read_text("utf-8").partition("## Where things are")[2].partition("\n## ")[0]
    )
    folder, room, named = "", "", set()
    for line in tree.splitlines():
        if begun := re.match(r"    (\w+)/   ", line):
            room = begun[1]
        if len(line) > 15 and line[15] != " " and line.startswith("    "):
            place = line[15:].split()[0]
            folder = f"{room}/{place}" if place.endswith("/") else f"{room}/"
        named |= {folder + file for file in re.findall(r"\b\w+\.py\b", line)}
    drivers = {str(path.relative_to(ROOT)) for path in (ROOT / "passes/backends/drivers").glob("*.py")}
    there = {str(path.relative_to(ROOT)) for path in MODULES if path.parts[-2] != "tightfit"}
    assert named == there - drivers
