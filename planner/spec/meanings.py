"""What the keys of a spec mean: the docstrings that stand below them in the code, and examples of what they take."""

from __future__ import annotations

import ast
import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from planner.spec.spec import Spec
from planner.spec.template import TEMPLATE


@cache
def parts() -> Mapping[str, type[BaseModel]]:
    """Return every part of a spec by its name, the whole first."""
    found: list[type[BaseModel]] = [Spec]
    for part in found:
        inner = (below for field in part.model_fields.values() for below in _parts(field.annotation))
        found += [each for each in dict.fromkeys(inner) if each not in found]
    return {part.__name__: part for part in found}


@cache
def described() -> Mapping[tuple[str, str], str]:
    """Return what every key means, by the part that it stands in and its name."""
    return dict(_described())


def _described() -> Iterator[tuple[tuple[str, str], str]]:
    """Every key of every part with the docstring below it."""
    modules = dict.fromkeys(sys.modules[part.__module__] for part in parts().values())
    written = (node for module in modules for node in ast.parse(inspect.getsource(module)).body)
    for part in (node for node in written if isinstance(node, ast.ClassDef)):
        for key, below in itertools.pairwise(part.body):
            told = below.value if isinstance(below, ast.Expr) else None
            if isinstance(key, ast.AnnAssign) and isinstance(told, ast.Constant):
                assert isinstance(key.target, ast.Name)
                yield (part.name, key.target.id), inspect.cleandoc(str(told.value))


def meaning(path: Sequence[str]) -> str | None:
    """Say in a line what a key means, with an example; None for a key that says nothing of itself."""
    part: type[BaseModel] = Spec
    *above, key = path or ("",)
    for step in above:
        field = part.model_fields.get(step)
        inner = None if field is None else next(_parts(field.annotation), None)
        if inner is None:
            return None
        part = inner
    said, example = described().get((part.__name__, key)), _example(path) or _of_type(part, key)
    lines = (
        f"{key}: {' '.join(said.split())}" if said else None,
        f"for example `{key}: {example}`" if example else None,
    )
    return "; ".join(line.rstrip(".") for line in lines if line) or None


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


def _example(path: Sequence[str]) -> str | None:
    """What `optimize init` writes for a key."""
    answers = {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "gpu": "rtx-4090",
        "count": 1,
        "context": 8192,
        "concurrency": 4,
        "prefix": "",
    }
    lengths = {
        "input_tokens": 2000,
        "output_tokens": 400,
        "goals": "  ttft: 2 s\n  decode: 20 tok/s\n  prefer: quality",
    }
    value: Any = yaml.safe_load(TEMPLATE.format(**answers, **lengths))
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return None if value is None else yaml.safe_dump(value, default_flow_style=True).split("\n")[0].strip()


def _of_type(part: type[BaseModel], key: str) -> str | None:
    """An example of the type that a key is of."""
    shapes = [part.model_json_schema().get("properties", {}).get(key, {})]
    for shape in shapes:
        shapes += shape.get("anyOf", ())
        if shape.get("examples"):
            return str(shape["examples"][0])
    return None
