"""Towers and projectors of multimodal models from templates: names, and dimensions as products of the config's fields.

`towers.jsonl` is made from transformers' classes (`benchmarks/make_towers.py`): one architecture a line, `tensors` of [name with `#`
for numbers, dimensions, counts of the numbers, conditions]. A dimension is a number, or [factor, added, {field: exponent}];
`grid` in place of the factor counts the whole patches of a square.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.draft import Description, make_stack
from passes.ir.architectures.parts import Maker, Part, total
from passes.ir.fields import Fields
from passes.ir.model import Role

_FILE = Path(__file__).with_name("towers.jsonl")

#: What tensor parallelism does with a tower's matrix, by the end of its name.
_ROLES = (
    (re.compile(r"(^|[._])(qkv(_proj)?|[qkv]_proj|query|key|value|query_key_value|c_attn|wqkv|w[qkv])$"), Role.QKV),
    (re.compile(r"(^|[._])(o_proj|out_proj|proj|wo|projection_layer)$"), Role.O),
    (re.compile(r"(^|[._])(fc1|gate_proj|up_proj|gate_up_proj|linear_fc1|w1|w3|intermediate\.dense)$"), Role.UP),
    (re.compile(r"(^|[._])(fc2|down_proj|linear_fc2|w2|output\.dense)$"), Role.DOWN),
)


@lru_cache(maxsize=1)
def _lines() -> dict[str, str]:
    return {re.match(r'\{"architecture": "(\w+)"', line)[1]: line for line in _FILE.read_text().splitlines()}  # type: ignore[index]


@lru_cache(maxsize=8)
def template(architecture: str) -> dict[str, Any]:
    """Find the template of an architecture. Raises KeyError."""
    found: dict[str, Any] = json.loads(_lines()[architecture])
    return found


def _value(expression: Any, fields: Mapping[str, Any]) -> Fraction:
    if not isinstance(expression, list):
        return Fraction(expression)
    factor, added, powers = expression
    if factor == "grid":
        side, patch = (fields[path] for path in powers)
        return Fraction((int(side) // int(patch)) ** 2 + added)
    result: Fraction = Fraction(factor)
    for path, exponent in powers.items():
        value = len(fields[path[4:]]) if path.startswith("len:") else fields[path]
        result *= Fraction(Fraction(value) ** int(exponent))
    whole: Fraction = result + added
    return whole


def _size(expression: Any, fields: Mapping[str, Any], name: str) -> int:
    value = _value(expression, fields)
    if value.denominator != 1 or value < 0:
        raise ValueError(f"{name}: {float(value)} rows")
    return int(value)


def rows(made: Mapping[str, Any], fields: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], list[list[int]]]]:
    """Yield names with `#`, shapes, and the numbers that stand for each `#`."""
    for name, dims, times, conditions in made["tensors"]:
        wanted = all(not fields[c[1:]] if c.startswith("!") else fields[c] for c in conditions)
        if not wanted:
            continue
        shape = tuple(_size(dim, fields, name) for dim in dims)
        columns = [
            (fixed[: _size(count, fields, name)] if fixed is not None else list(range(_size(count, fields, name))))
            for count, fixed in times
        ]
        yield name, shape, columns


def expand(made: Mapping[str, Any], fields: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Give every tensor of a template with its shape."""
    for name, shape, columns in rows(made, fields):
        for numbers in itertools.product(*columns):
            full = name
            for number in numbers:
                full = full.replace("#", str(number), 1)
            yield full, shape


def fields_of(made: Mapping[str, Any], root: Config, text: Config) -> dict[str, Any]:
    """Read the fields that a template needs from a config; what it leaves out has its class's default.

    Raises InputError where a pinned field, whose effect the template does not know, has another value.
    """
    found = {}
    for path, default in (made["defaults"] | made["pinned"]).items():
        *parts, name = path.split(".")
        here: Fields = root
        for part in parts:
            here = here.inside(part, {})
        value = (text if parts == ["text_config"] else here).values.get(name)
        found[path] = default if value is None else value
        if path in made["pinned"] and found[path] != default:
            raise not_understood(root.name, f"{root.path}: {path} {found[path]!r} is not known here, only {default!r}")
    return found


def towers(architecture: str, root: Config, text: Config, m: Maker, prefix: str = "") -> Description:
    """Describe what an architecture of the table holds beside its decoder: a stack for every numbered run of layers, and the rest."""
    made = template(architecture)
    fields = fields_of(made, root, text)
    try:
        found = list(rows(made, fields))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise not_understood(
            root.name, f"{root.path}: towers of {architecture} do not come out whole ({error})"
        ) from error
    shapes = {name: shape for name, shape, _ in found}
    stacks: dict[tuple[str, tuple[int, ...]], Part] = {}
    outer = Part()
    for name, shape, columns in found:
        if name.endswith(".bias") and len(shapes.get(name[:-5] + ".weight", ())) == 2:
            continue
        if not columns:
            outer += _part(m, name, shape, shapes)
            continue
        before, _, inside = name.partition("#")
        for rest in itertools.product(*columns[1:]):
            stem = inside
            for number in rest:
                stem = stem.replace("#", str(number), 1)
            part = _part(m, stem.removeprefix("."), shape, shapes, whole=name)
            key = (before, tuple(columns[0]))
            stacks[key] = stacks.get(key, Part()) + part
    layered = []
    for (before, numbers), part in stacks.items():
        if numbers == tuple(range(numbers[0], numbers[0] + len(numbers))):
            layered.append(
                make_stack("vision", prefix + before + "{i}.", [part.dense().block()] * len(numbers), numbers[0])
            )
        else:
            outer += total(*(part.at(f"{before}{number}.") for number in numbers))
    return Description(tuple(layered), outer.dense().at(prefix))


def _part(m: Maker, name: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], whole: str = "") -> Part:
    stem = name.removesuffix(".weight")
    if len(shape) != 2 or stem == name:
        return m.tensor(name, *shape)
    role = next((role for pattern, role in _ROLES if pattern.search(stem)), Role.OTHER)
    bias = (whole or name).removesuffix(".weight") + ".bias" in shapes
    return m.linear(stem, role, *shape, bias=bias, quantizable=False)
