"""Figures of the structure, measured on the source. A ceiling may only fall, and is lowered with its figure.

`python -m tests.test_structure` prints the figures as they are.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("passes", "targets", "planner", "tightfit")
#: The most modules of a folder that a reader takes in at once.
MODULES = 12
#: The most parameters of a function that a reader takes in at once.
PARAMETERS = 6
#: Functions that may take more, because their parameters are what they are for. Beside these: commands, whose options are their interface
#: (`app.command`), and a card's kernels, which take pointers and sizes one by one (`triton.jit`).
INTERFACES = {
    ("planner/check.py", "check"),  # `tightfit.check`: what `optimize check` asks, in Python
    ("passes/ir/architectures/parts.py", "linear"),  # the constructor of a `Linear`, a plain description
}

CEILINGS = {
    "modules at the top of passes": 7,
    "isinstance on a concrete pass outside its file": 0,
    "isinstance on a format outside its file": 13,
    "functions with more than 6 parameters": 0,
    "files that name mxfp4": 6,
    "files that name exl3": 6,
    "files that name q6": 3,
    "getattr with a default": 6,
    "string subscripts in tables": 0,
    "variables called one": 0,
    "public docstrings that begin without a verb": 0,
    "public functions that return a number of no said unit": 0,
    "functions of more than 60 lines": 0,
    "names that nothing else names": 3,
}


@cache
def sources() -> dict[str, ast.Module]:
    """Every file of the rooms by its path, parsed."""
    paths = (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def nodes(tree: ast.AST, kind: type[ast.AST]) -> Iterator[ast.AST]:
    return (node for node in ast.walk(tree) if isinstance(node, kind))


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@cache
def names(path: str) -> dict[str, str]:
    """What a file's names stand for: `module.name` of what it imports or defines at its top."""
    found = {}
    for node in nodes(sources()[path], ast.ImportFrom):
        found |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    for node in sources()[path].body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = f"{module_of(path)}.{node.name}"
    return found


@cache
def subclasses(base: str) -> frozenset[str]:
    """The classes that inherit from one, directly or not, each as `module.name`."""
    parents = {
        names(path)[node.name]: {names(path).get(ast.unparse(parent)) for parent in node.bases}
        for path, tree in sources().items()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    family = {base}
    while grown := {name for name, above in parents.items() if above & family} - family:
        family |= grown
    return frozenset(family - {base})


def asked(path: str, node: ast.expr) -> Iterator[str]:
    """The classes that the second argument of an `isinstance` names, those of a constant of the file too."""
    constants = {
        target.id: each.value
        for each in sources()[path].body
        if isinstance(each, ast.Assign)
        for target in each.targets
        if isinstance(target, ast.Name)
    }
    for name in nodes(node, ast.Name):
        if name.id in constants:
            yield from asked(path, constants[name.id])
        elif name.id in names(path):
            yield names(path)[name.id]


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    for path, tree in sources().items():
        for node in nodes(tree, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == name:
                yield path, node


def questions(base: str) -> int:
    """How many calls of `isinstance` ask for a subclass of `base` that another file defines."""
    family = subclasses(base)
    return sum(
        any(name in family and name.rpartition(".")[0] != module_of(path) for name in asked(path, call.args[1]))
        for path, call in calls("isinstance")
    )


def many_parameters() -> int:
    """Not counted are those whose parameters are an interface: see `INTERFACES`."""
    functions = (
        node
        for path, tree in sources().items()
        for node in nodes(tree, ast.FunctionDef)
        if (path, node.name) not in INTERFACES
        and not any(re.search(r"\btriton\.jit\b|\bapp\.command\(", ast.unparse(each)) for each in node.decorator_list)
    )
    return sum(len(parameters(node.args)) > PARAMETERS for node in functions)


def parameters(arguments: ast.arguments) -> list[str]:
    """The names of a function's parameters, but for the object or class that it is of."""
    written = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return [each.arg for each in written if each.arg not in ("self", "cls")]


def files_that_name(word: str) -> int:
    pattern = re.compile(rf"(?<![a-z0-9]){word}", re.IGNORECASE)
    return sum(pattern.search((ROOT / path).read_text(encoding="utf-8")) is not None for path in sources())


def string_subscripts(folder: str) -> int:
    trees = (tree for path, tree in sources().items() if str(Path(path).parent) == folder)
    slices = (node.slice for tree in trees for node in nodes(tree, ast.Subscript))
    return sum(isinstance(each, ast.Constant) and isinstance(each.value, str) for each in slices)


def variables_called(name: str) -> int:
    """How often a variable or a parameter of that name is written."""
    trees = sources().values()
    written = sum(node.id == name for tree in trees for node in nodes(tree, ast.Name))
    return written + sum(node.arg == name for tree in trees for node in nodes(tree, ast.arg))


def modules_in(folder: str) -> int:
    return sum(str(Path(path).parent) == folder and Path(path).name != "__init__.py" for path in sources())


#: A docstring begins with a verb that says what is done: an English word in its plain form, so no name, no figure, no plural, no past.
VERB = re.compile(r"[A-Z][a-z]+(?<!ed)(?:(?<!s)|(?<=ss))[,:]?")
#: Words of that form that are no verbs.
NO_VERBS = re.compile(
    "The|An?|What|Whether|One|Two|Every|Everything|How|Why|Where|All|Any|Each|Other|By|In|It|No|None|Not|Nothing|Only|More|From|Through"
    "|Between|With|At|Up|So|True|False|Unknown|Everyone|Fewer|Smaller|Static|Median|Number|Memory|Source|Text|Token|Tensor|Weight"
)
#: Words that say what a number counts.
UNITS = re.compile(
    r"byte|bit|second|\bms\b|millisecond|token|nat|GiB|share|factor|many|number|index|count|capability|seed|position|width|rank|times"
    r"|request|block|operation|element|weights|layer|graph|column|row|dimension|percent|head|card|trial|probability|half|input|output",
    re.IGNORECASE,
)


def public_functions() -> Iterator[tuple[ast.FunctionDef, str]]:
    """Functions and methods that others call, properties left out, each with its docstring."""
    for tree in sources().values():
        for node in nodes(tree, ast.FunctionDef):
            assert isinstance(node, ast.FunctionDef)
            is_property = any("property" in ast.unparse(each) for each in node.decorator_list)
            if not node.name.startswith("_") and not is_property and (text := ast.get_docstring(node)):
                yield node, text


def without_a_verb() -> int:
    begun = (text.split()[0] for _, text in public_functions())
    return sum(VERB.fullmatch(word) is None or NO_VERBS.fullmatch(word.rstrip(",:")) is not None for word in begun)


def without_a_unit() -> int:
    returned = ((node, text) for node, text in public_functions() if node.returns is not None)
    return sum(
        ast.unparse(node.returns) in ("int", "float", "int | None", "float | None") and not UNITS.search(text)
        for node, text in returned
        if node.returns is not None
    )


#: What may be longer: a card's kernels, and commands, whose options take the room.
LONG_ANYWAY = re.compile(r"\btriton\.jit\b|\bapp\.command\(")


def long_functions() -> int:
    functions = [node for tree in sources().values() for node in nodes(tree, ast.FunctionDef)]
    return sum(
        node.end_lineno - node.lineno >= 60
        and not any(LONG_ANYWAY.search(ast.unparse(each)) for each in node.decorator_list)
        for node in functions
    )


#: What a framework finds by itself, by the decorator.
FOUND_BY_NAME = re.compile(r"\bapp\.|validator|serializer")


def unnamed() -> int:
    """Functions and classes that stand nowhere but where they are defined, programs and pages of the project read too; what a framework
    calls by its name (transformers' Trainer and caches) is among them.
    """
    folders = (*ROOMS, "benchmarks", "reference", "tests")
    files = (
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".html", ".j2")
    )
    words = Counter(word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8")))
    defined = (
        node
        for tree in sources().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not any(FOUND_BY_NAME.search(ast.unparse(each)) for each in node.decorator_list)
    )
    return sum(words[node.name] == 1 and not node.name.startswith("__") for node in defined)


FIGURES: dict[str, Callable[[], int]] = {
    "modules at the top of passes": partial(modules_in, "passes"),
    "isinstance on a concrete pass outside its file": partial(questions, "passes.base.Pass"),
    "isinstance on a format outside its file": partial(questions, "passes.formats.format.Format"),
    "functions with more than 6 parameters": many_parameters,
    "files that name mxfp4": partial(files_that_name, "mxfp4"),
    "files that name exl3": partial(files_that_name, "exl3"),
    "files that name q6": partial(files_that_name, "q6"),
    "getattr with a default": lambda: sum(len(call.args) == 3 for _, call in calls("getattr")),
    "string subscripts in tables": partial(string_subscripts, "planner/cli/tables"),
    "variables called one": partial(variables_called, "one"),
    "public docstrings that begin without a verb": without_a_verb,
    "public functions that return a number of no said unit": without_a_unit,
    "functions of more than 60 lines": long_functions,
    "names that nothing else names": unnamed,
}


@pytest.mark.parametrize("name", CEILINGS)
def test_a_figure_does_not_rise_and_its_ceiling_falls_with_it(name: str) -> None:
    figure, ceiling = FIGURES[name](), CEILINGS[name]
    assert figure <= ceiling, f"{name}: {figure}, at most {ceiling}"
    assert figure == ceiling, f"{name}: {figure}; lower its ceiling of {ceiling}"


def test_every_figure_has_a_ceiling() -> None:
    assert FIGURES.keys() == CEILINGS.keys()


def test_no_folder_holds_more_than_a_dozen_modules() -> None:
    folders = {str(Path(path).parent) for path in sources()}
    assert [folder for folder in sorted(folders) if modules_in(folder) > MODULES] == []


def test_the_first_file_of_a_folder_imports_none_of_its_members() -> None:
    """But for the tables of names that later steps take out of there."""
    allowed = {"passes/backends/__init__.py", "passes/ir/architectures/__init__.py"}
    circles = {
        path
        for path, tree in sources().items()
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        and Path(path).name == "__init__.py"
        and (node.module or "").startswith(module_of(path))
    }
    assert circles <= allowed


@pytest.mark.parametrize(
    ("arguments", "besides"),
    [
        (["plan", "examples/llama-3.3-70b-rtx4090.yaml"], set[str]()),
        (["check", "--model", "Qwen/Qwen2.5-7B-Instruct", "--gpu", "rtx-4090"], {"pydantic", "importlib.metadata"}),
        (["check", "--model", "llama-3.1-8b", "--gpu", "24GB"], {"pydantic", "importlib.metadata"}),
    ],
)
def test_what_is_predicted_needs_nothing_heavy(arguments: list[str], besides: set[str], tmp_path: Path) -> None:
    heavy = {"torch", "transformers", "scipy.optimize", "jinja2", "ray", *besides}
    program = (
        f"import sys; sys.argv = ['optimize', *{arguments!r}]\n"
        "from planner.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code in (0, 3), end.code\n"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


if __name__ == "__main__":
    for name, figure in FIGURES.items():
        print(name, figure())
