"""Every command on a page is run, in the order of its page; what takes a card, an engine or minutes is read by its own parser."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from planner.cli.main import application
from reference.commands import Command, File, steps, unmarked
from tests.planner.conftest import run
from tests.stand_in_nvml import MIB, Card, Library, install

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
TEXTS = {str(page.relative_to(ROOT)): page.read_text("utf-8") for page in PAGES}
WITH_COMMANDS = {name: text for name, text in TEXTS.items() if any(isinstance(step, Command) for step in steps(text))}
#: Targets of the Makefile.
TARGETS = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
#: How pages call the folder of a result.
RESULT = "out/small"
#: Benchmarks named in the running text of pages, with their options.
_BENCHMARK = re.compile(r"`python -m (benchmarks\.[\w.]+)([^`]*)`")
#: Commands named in the running text of pages.
_NAMED = re.compile(r"`optimize ([a-z][\w-]*)((?:[^`\n]|\n(?!\n))*)`")


@pytest.fixture(scope="session")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished result."""
    from planner.apply import apply
    from tests.walk.conftest import TINY_SPEC, save_tiny_llama

    folder = tmp_path_factory.mktemp("made")
    save_tiny_llama(folder / "model")
    (folder / "text.txt").write_text(" ".join(f"Word {number} of a text." for number in range(200)))
    (folder / "tiny.yaml").write_text(TINY_SPEC)
    return apply(folder / "tiny.yaml", folder / "small").out


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples, on a machine with an RTX 4090."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    install(monkeypatch, Library([Card("NVIDIA GeForce RTX 4090", 24564 * MIB, 24100 * MIB)]))
    return tmp_path


@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_the_commands_of_a_page_end_as_it_says(
    page: str,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if RESULT in WITH_COMMANDS[page]:
        shutil.copytree(request.getfixturevalue("result"), workplace / RESULT)
    for step in steps(WITH_COMMANDS[page]):
        if isinstance(step, File):
            (workplace / step.name).write_text(step.text, encoding="utf-8")
        elif step.takes is not None or step.words[0] == "make":
            understood(step)
        else:
            assert step.words[0] == "optimize", f"nothing runs {step.line!r}: say what it takes"
            code, printed, said = run(monkeypatch, capsys, *step.words[1:])
            assert code == step.exit_code, f"{step.line}\n{printed}\n{said}"


def understood(command: Command) -> None:
    """Hold a command that is not run against what would read it."""
    program, *words = command.words
    if program == "make":
        assert words[0] in TARGETS
    elif program == "optimize":
        parsed(words[0], words[1:])
    elif program == "python":
        assert words[0] == "-m" and (ROOT / words[1].replace(".", "/")).with_suffix(".py").exists()


def parsed(name: str, words: list[str]) -> None:
    """Have a command's parser read its words; raises where it does not take them."""
    command = get_command(application()).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, list(words), resilient_parsing=False)


def test_the_pages_have_commands() -> None:
    commands = [step for text in WITH_COMMANDS.values() for step in steps(text) if isinstance(step, Command)]
    assert sum(command.takes is None for command in commands) > 50
    assert {command.exit_code for command in commands} == {0, 2, 3}


def test_no_command_of_a_page_goes_without_its_mark() -> None:
    assert {name: lines for name, text in TEXTS.items() if (lines := unmarked(text))} == {}


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_and_option_that_the_text_names_is_there(page: str) -> None:
    commands = get_command(application()).commands  # type: ignore[attr-defined]
    for name, rest in _NAMED.findall(TEXTS[page]):
        assert name in commands, name
        options = {spelling for each in commands[name].params for spelling in each.opts} | {"--help"}
        own = rest.partition(" -- ")[0]
        assert {word.split("=")[0] for word in re.findall(r"(?<= )--[\w-]+", own)} <= options, rest


@pytest.mark.parametrize("page", TEXTS)
def test_every_benchmark_and_option_that_the_text_names_is_there(page: str) -> None:
    for module, rest in _BENCHMARK.findall(TEXTS[page]):
        stem = ROOT / module.replace(".", "/")
        files = [
            file for file in (stem.with_suffix(".py"), stem / "__main__.py", stem / "__init__.py") if file.is_file()
        ]
        assert files, module
        said = "".join(file.read_text("utf-8") for file in files)
        assert [flag for flag in re.findall(r"(?<= )--[\w-]+", rest) if f'"{flag}"' not in said] == [], module


def test_a_command_that_no_parser_takes_is_told(workplace: Path) -> None:
    with pytest.raises(typer.BadParameter.__mro__[1]):
        understood(Command("optimize plan --no-such", 0, "a card"))
