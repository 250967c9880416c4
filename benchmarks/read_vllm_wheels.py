"""Reads vLLM's wheels from the package index and says which of our rules their source contradicts.

    python -m benchmarks.read_vllm_wheels 0.33.0            # ours against theirs, rule by rule; 1 where one contradicts
    python -m benchmarks.read_vllm_wheels --table 0.6.0 …   # writes targets/engines/vllm/rules/architectures.json of these versions

A wheel has some 400 MB; only its Python files are kept (`--folder`), and none is run.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from benchmarks.vllm_facts import compared
from benchmarks.vllm_registry import changes
from benchmarks.vllm_wheel import Source, fetch
from targets.engines.vllm.rules.versions import parse_version, rules_for

_TABLE = Path(__file__).parents[1] / "targets" / "engines" / "vllm" / "rules" / "architectures.json"
_FOLDER = Path(tempfile.gettempdir()) / "vllm-wheels"


def table(sources: list[Source], folder: Path) -> str:
    """Return the text of `architectures.json`, one architecture a line."""
    told = changes([(source, transformers_of(source, folder)) for source in sources])
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(listed)}" for name, listed in sorted(told.items()))
    source = "model_executor/models/registry.py of vLLM's CUDA wheels on the package index, of these versions"
    versions = json.dumps([source.version for source in sources])
    return f'{{\n "source": "{source}",\n "versions": {versions},\n "architectures": {{\n{rows}\n }}\n}}\n'


def transformers_of(source: Source, folder: Path) -> Source | None:
    """Return the oldest transformers that a version accepts, which it was made with; None where it names none."""
    least = re.search(r">=\s*([\d.]+)", source.requires("transformers") or "")
    return least and Source(least[1], fetch(least[1], folder, "transformers"), "transformers")


def contradictions(source: Source) -> int:
    """Print each rule with ours, theirs and the place; return how many contradict."""
    rules, _ = rules_for(source.version)
    wrong = 0
    print(f"vLLM {source.version}")
    for fact in compared(source, rules):
        name, ours, theirs = fact.name, fact.ours, fact.theirs
        if theirs is None:
            print(f"  ?    {name}: ours {ours}; not found in the source: look where it went")
        elif ours == theirs.value:
            print(f"  ok   {name}: {ours} ({theirs.place})")
        elif fact.set_aside:
            print(f"  kept {name}: ours {ours}, theirs {theirs.value} ({theirs.place}): {fact.set_aside}")
        else:
            wrong += 1
            print(f"  NOT  {name}: ours {ours}, theirs {theirs.value} ({theirs.place})")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", help="versions of the wheels, like 0.33.0")
    parser.add_argument("--table", action="store_true", help="write the table of architectures of these versions")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where wheels' Python files are kept")
    asked = parser.parse_args()
    sources = [Source(version, fetch(version, asked.folder)) for version in sorted(asked.versions, key=parse_version)]
    if asked.table:
        _TABLE.write_text(table(sources, asked.folder), encoding="utf-8")
        return 0
    return 1 if sum(contradictions(source) for source in sources) else 0


if __name__ == "__main__":
    sys.exit(main())
