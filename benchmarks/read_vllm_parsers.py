"""Make `targets/engines/vllm/arguments/parsers.jsonl`: the parsers of tool calls and of reasoning, and the versions that have them.

    python -m benchmarks.read_vllm_parsers WHEELS

WHEELS: folders of Python sources by version (`<version>/vllm/…`, `benchmarks.vllm_wheel.fetch`), read as syntax trees: the names that are
registered by decorators, and those of the tables that took their place.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "targets" / "engines" / "vllm" / "arguments" / "parsers.jsonl"
_FOLDERS = {
    "tool-call-parser": ("tool_parsers", "entrypoints/openai/tool_parsers"),
    "reasoning-parser": ("reasoning", "entrypoints/openai/reasoning_parsers"),
}


def registered(file: Path) -> Iterator[str]:
    """Give the names that a file registers: in `@…Manager.register_module(…)`, or as keys of a `…_PARSERS_TO_REGISTER`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            calls = (each for each in node.decorator_list if isinstance(each, ast.Call))
            for call in (each for each in calls if getattr(each.func, "attr", "") == "register_module"):
                for text in (each for each in (*call.args, *(k.value for k in call.keywords))):
                    named = [text] if isinstance(text, ast.Constant) else getattr(text, "elts", [])
                    yield from (each.value for each in named if isinstance(getattr(each, "value", None), str))
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if any("PARSERS_TO_REGISTER" in getattr(target, "id", "") for target in targets):
            yield from (key.value for key in getattr(getattr(node, "value", None), "keys", []))


def rows(folder: Path) -> Iterator[dict[str, str]]:
    """Give each parser with the first and the last version that has it, and the versions before and after these that lack it."""
    order = sorted(
        (each.name for each in folder.iterdir() if re.fullmatch(r"[\d.]+(\.post\d)?", each.name)),
        key=lambda name: [int(part) for part in re.findall(r"\d+", name)],
    )
    for flag, places in _FOLDERS.items():
        has: dict[str, list[int]] = {}
        for number, version in enumerate(order):
            files = [file for place in places for file in sorted((folder / version / "vllm" / place).glob("*.py"))]
            for name in {name for file in files for name in registered(file)}:
                has.setdefault(name, []).append(number)
        for name, found in sorted(has.items()):
            first, last = found[0], found[-1]
            row = {"flag": flag, "name": name}
            if first > 0:
                row |= {"lacking": order[first - 1], "since": order[first]}
            if last < len(order) - 1:
                row |= {"until": order[last], "gone": order[last + 1]}
            yield row


if __name__ == "__main__":
    OUT.write_text("".join(f"{json.dumps(row)}\n" for row in rows(Path(sys.argv[1]))), encoding="utf-8")
