"""Make `targets/engines/vllm/arguments/flags.jsonl`: every flag of `vllm serve`, what it takes (of a few words: which), and the versions that have it.

    python -m benchmarks.read_vllm_flags ENGINE_PYTHON WHEELS

ENGINE_PYTHON: a Python with vLLM, whose own parser (`make_arg_parser`) is asked. WHEELS: folders of Python sources by version
(`<version>/vllm/…`), in which the names are looked for as they are written: which version first has one, and which has it last.
Flags that only older versions have are told by their `add_argument` alone.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / "targets" / "engines" / "vllm" / "arguments" / "flags.jsonl"
_ASK = """
import json, sys
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.entrypoints.launchers.cli_args import make_arg_parser
parser = make_arg_parser(FlexibleArgumentParser(add_help=False))
groups = {id(a): g.title for g in parser._action_groups for a in g._group_actions}
from typing import get_args
from vllm.model_executor.model_loader import LoadFormats
# The parser takes any text: the loader refuses it, but for what packages beside vLLM register (vllm-bnb-plugin, vllm-gguf-plugin).
choices = {"--load-format": [*get_args(LoadFormats), "bitsandbytes", "gguf"]}
said = lambda a: [str(c) for c in a.choices or choices.get(a.option_strings[0], ()) if c is not None and c != "None"]
print(json.dumps([[a.option_strings, a.nargs, groups.get(id(a)), said(a)] for a in parser._actions if a.option_strings]))
"""
#: Values that the parser asked does not take any more, as older sources list them in the `Literal` of a configuration class:
#: `MambaCacheMode`, `ConvertOption`, `PrefixCachingHashAlgo`, `All2AllBackend`.
FORMER = {
    "--mamba-cache-mode": ["all"],
    "--convert": ["mm_encoder_only", "reward"],
    "--prefix-caching-hash-algo": ["builtin"],
    "--all2all-backend": ["mori"],
}
_SOURCES = ("engine/arg_utils.py", "entrypoints/openai/cli_args.py", "entrypoints/launchers/cli_args.py")
_STORES = {"store_true", "store_false", "StoreBoolean"}
#: Names of flags that take no value, where the source says so elsewhere.
_SWITCHES = re.compile("--(enable|disable|use|guided-decoding-disable|eplb-log|expand)-")


def parser_flags(python: str) -> list[dict[str, Any]]:
    """Ask vLLM's parser for its flags, each with its other spellings and how many values it takes."""
    done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=True)
    rows = []
    for names, nargs, group, choices in json.loads(done.stdout.splitlines()[-1]):
        takes = {0: "none", None: "value", "?": "optional"}.get(nargs, "values")
        name, *others = names
        rows.append(
            {
                "flag": name,
                "takes": takes,
                "also": [n for n in others if not n.startswith("--no-")],
                "group": group,
                "choices": choices,
                "former": [value for value in FORMER.get(name, []) if value not in choices],
            }
        )
    return rows


def written_flags(folder: Path) -> dict[str, str]:
    """Return the flags that a version's source writes out, with what they take."""
    found = {}
    for source in _SOURCES:
        path = folder / "vllm" / source
        if not path.is_file():
            continue
        text = path.read_text()
        for call in ast.walk(ast.parse(text)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
                names = [a.value for a in call.args if isinstance(a, ast.Constant) and str(a.value).startswith("--")]
                options = {k.arg: ast.unparse(k.value).strip("'\"") for k in call.keywords}
                takes = (
                    "none"
                    if options.get("action") in _STORES or (names[:1] and _SWITCHES.match(names[0]))
                    else {"?": "optional", "+": "values", "*": "values"}.get(options.get("nargs", ""), "value")
                )
                found.update((name, takes) for name in names)
        # Frontend arguments are the fields of a dataclass from 0.11 on.
        for each in ast.walk(ast.parse(text)):
            if isinstance(each, ast.ClassDef) and each.name in ("FrontendArgs", "BaseFrontendArgs"):
                fields = (f for f in each.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name))
                found.update((f"--{f.target.id.replace('_', '-')}", "value") for f in fields)
    return found


def main(python: str, wheels: Path) -> None:
    """Write the table."""
    folders = [p for p in wheels.iterdir() if re.fullmatch(r"[\d.]+(\.post\d)?", p.name) and (p / "vllm").is_dir()]
    order = sorted(folders, key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
    rows = {row["flag"]: row for row in parser_flags(python)}
    by_version = {folder.name: written_flags(folder) for folder in order}
    newest = order[-1].name
    spelled = {other: row["flag"] for row in rows.values() for other in (row["flag"], *row["also"])}
    for version, flags in by_version.items():
        for flag, takes in flags.items():
            name = spelled.get(flag, flag)
            if name.startswith("--no-") or name in ("--help",):
                continue
            row = rows.setdefault(name, {"flag": name, "takes": takes, "also": [], "group": None})
            row.setdefault("since", version)
            row["until"] = version
    for row in rows.values():
        if row.get("until") == newest or row["group"] is not None:
            row.pop("until", None)
        if row.get("since") == order[0].name:
            row.pop("since", None)
    lines = (
        json.dumps({k: v for k, v in row.items() if v not in (None, [])})
        for row in sorted(rows.values(), key=lambda r: r["flag"])
    )
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
