"""Make `targets/engines/vllm/arguments/configs.jsonl`: the keys of every flag of `vllm serve` that takes JSON, their types, and the versions
that have them.

    python -m benchmarks.read_vllm_configs ENGINE_PYTHON WHEELS

ENGINE_PYTHON: a Python with vLLM, whose own configuration classes are asked for their fields (they forbid others). WHEELS: folders of Python
sources by version (`<version>/vllm/…`), in which the fields of the classes of the same names are looked for.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / "targets" / "engines" / "vllm" / "arguments" / "configs.jsonl"
_ASK = """
import dataclasses, enum, json, sys, types, typing
from pathlib import Path
import vllm.config as config
from vllm.config.multimodal import AudioDummyOptions, ImageDummyOptions, VideoDummyOptions
from vllm.engine.arg_utils import EngineArgs

def resolve(hint, home):
    if isinstance(hint, str):
        try:
            return eval(hint, vars(sys.modules[home.__module__]))
        except Exception:
            return typing.Any
    return hint

def classes(hint):
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for inner in typing.get_args(hint):
        yield from classes(inner)

PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string", type(None): "null", dict: "object"}

def kinds(hint):  # (JSON types, words); no types: any
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [kinds(each) for each in arguments]
        types_ = [] if any(not t for t, _ in parts) else [t for ts, _ in parts for t in ts]
        free = any("string" in t and not w for t, w in parts)
        return types_, [] if free else [w for _, ws in parts for w in ws]
    if origin is typing.Annotated:
        return kinds(arguments[0])
    if origin is typing.Literal:
        words = [str(each) for each in arguments if isinstance(each, str)]
        return sorted({PLAIN.get(type(each), "string") for each in arguments}), words
    if origin in (list, tuple, set, frozenset) or hint in (list, tuple, set):
        return ["array"], []
    if origin is dict or (isinstance(hint, type) and (dataclasses.is_dataclass(hint) or issubclass(hint, dict))):
        return ["object"], []
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ["integer", "string"], [each.name for each in hint]
    if hint in PLAIN:
        return [PLAIN[hint]], []
    return [], []

def absent(home):  # fields whose validators let None through
    decorators = getattr(home, "__pydantic_decorators__", None)
    found = decorators.field_validators.values() if decorators else ()
    return {name for each in found if each.info.mode == "wrap" for name in each.info.fields}

def rows(of, home, seen=()):
    for each in dataclasses.fields(home):
        if not each.init or (each.name.endswith("_config") and each.name.startswith(("target_", "draft_"))):
            continue
        hint = resolve(each.type, home)
        taken, words = kinds(hint)
        if each.name in absent(home):
            taken = [*taken, "null"]
        yield {"of": of, "key": each.name, "class": home.__name__, "types": sorted(set(taken)), "choices": sorted(set(words))}
        for inner in classes(hint):
            if inner not in seen:
                yield from rows(f"{of}.{each.name}", inner, (*seen, home))

homes = {"speculative-config": config.SpeculativeConfig}
for each in dataclasses.fields(EngineArgs):
    if each.name.endswith("_config"):
        for inner in classes(resolve(each.type, EngineArgs)):
            homes.setdefault(each.name.replace("_", "-"), inner)
for kind, home in (("audio", AudioDummyOptions), ("image", ImageDummyOptions), ("video", VideoDummyOptions)):
    homes[f"limit-mm-per-prompt.{kind}"] = home
print(json.dumps([row for of, home in sorted(homes.items()) for row in rows(of, home)]))
"""


def engine_keys(python: str) -> list[dict[str, Any]]:
    """Ask vLLM's configuration classes for their fields, with JSON types (none: any) and the only words that they take."""
    done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def written_fields(folder: Path, names: set[str]) -> dict[str, set[str]]:
    """Return the fields of classes as a version's source writes them."""
    found: dict[str, set[str]] = {}
    for path in (folder / "vllm" / "config.py", *(folder / "vllm" / "config").glob("*.py")):
        if path.is_file():
            for each in ast.walk(ast.parse(path.read_text())):
                if isinstance(each, ast.ClassDef) and each.name in names:
                    found.setdefault(each.name, set()).update(_fields(each))
    return {name: fields for name, fields in found.items() if fields}


def _fields(each: ast.ClassDef) -> Iterator[str]:
    for field in each.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = ast.unparse(field)
            if "ClassVar" not in said and "init=False" not in said and "PrivateAttr" not in said:
                yield field.target.id


def main(python: str, wheels: Path) -> None:
    """Write the table."""
    rows = engine_keys(python)
    homes = {row["of"]: row["class"] for row in rows}
    folders = [p for p in wheels.iterdir() if re.fullmatch(r"[\d.]+(\.post\d)?", p.name) and (p / "vllm").is_dir()]
    order = sorted(folders, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
    written = {folder.name: written_fields(folder, set(homes.values())) for folder in order}
    known = {(row["of"], row["key"]) for row in rows}
    for of, home in homes.items():
        having = {version: fields[home] for version, fields in written.items() if home in fields}
        inherited = {row["key"] for row in rows if row["of"] == of} - set().union(*having.values(), set())
        for gone in sorted(set().union(*having.values()) - {key for o, key in known if o == of} if having else ()):
            rows.append({"of": of, "key": gone, "class": home, "types": [], "choices": []})
        for row in (row for row in rows if row["of"] == of and row["key"] not in inherited):
            versions = [version for version, fields in having.items() if row["key"] in fields]
            first, last = (list(having) or [None])[0], (list(having) or [None])[-1]
            row["since"] = versions[0] if versions and versions[0] != first else None
            row["until"] = versions[-1] if versions and versions[-1] != last else None
    lines = (
        json.dumps({key: value for key, value in row.items() if key != "class" and value not in (None, [])})
        for row in sorted(rows, key=lambda row: (row["of"], row["key"]))
    )
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
