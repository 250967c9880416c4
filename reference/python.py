"""The page of the Python facade: every public name with its signature and what it promises."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import tightfit

_HEAD = """# Python

Made from the code: every name of the package `tightfit`. [A page of examples](../python.md) shows them at work. Importing the package costs
nothing; a name is loaded when it is first used, and only what makes weights loads torch.
"""


def page() -> str:
    """Write the page."""
    return "\n".join((_HEAD, *(part for name in tightfit.__all__ for part in _name(name, getattr(tightfit, name)))))


def _name(name: str, value: Any) -> Iterator[str]:
    if not callable(value):
        return
    yield f"## tightfit.{name}\n"
    if not inspect.isclass(value):
        yield f"```python\n{_signature(name, value)}\n```\n"
    elif issubclass(value, Exception):
        yield f"```python\nclass {name}({value.__mro__[1].__name__})\n```\n"
    yield f"{inspect.cleandoc(value.__doc__ or '')}\n"
    if inspect.isclass(value) and (members := list(_members(value))):
        yield "\n".join(f"* `{member}`: {said}" for member, said in members) + "\n"


def _signature(name: str, function: Any) -> str:
    """A function with a line for each parameter; a default that is a function says nothing and is left out."""
    signature = inspect.signature(function)
    keyword = [each.name for each in signature.parameters.values() if each.kind is each.KEYWORD_ONLY]
    lines = []
    for each in signature.parameters.values():
        if keyword and each.name == keyword[0]:
            lines.append("*")
        default = "" if each.default is each.empty else " = …" if callable(each.default) else f" = {each.default!r}"
        lines.append(f"{each.name}: {each.annotation}{default}")
    return "\n".join((f"{name}(", *(f"    {line}," for line in lines), f") -> {signature.return_annotation}"))


def _members(kind: Any) -> Iterator[tuple[str, str]]:
    """The fields of a class that is no part of the spec, and its properties and methods by what they say."""
    if dataclasses.is_dataclass(kind):
        yield from ((field.name, f"`{field.type}`") for field in dataclasses.fields(kind))
    for name, member in vars(kind).items():
        plain = member.fget if isinstance(member, property) else member
        if not name.startswith("_") and inspect.isfunction(plain) and plain.__doc__ and "model_fields" not in dir(kind):
            call = "" if isinstance(member, property) else "()"
            yield f"{name}{call}", " ".join(inspect.cleandoc(plain.__doc__).split("\n\n")[0].split())
