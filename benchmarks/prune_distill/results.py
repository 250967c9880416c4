"""Results of a stage on disk, and the page of the documentation that follows from them.

benchmarks/data/prune_distill/<model>/<stage>.json     lines with spread and goal, versions, commit, threads, seconds of every step
python -m benchmarks.prune_distill.results > docs/pruning-results.md
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.prune_distill.bench import Figure, Line
from benchmarks.prune_distill.subject import SUBJECTS, Subject

FOLDER = Path(__file__).parent.parent / "data" / "prune_distill"
_PACKAGES = ("torch", "transformers", "accelerate", "safetensors")
_HEAD = """# Pruning and distillation, measured

Made by `python -m benchmarks.prune_distill.results` from what `python -m benchmarks.prune_distill` found, a file each stage
under `benchmarks/data`. Whole model, two cores, fixed seeds. Nothing is fitted to the judging texts; the measure of importance, the kinds of
text that are looked at and the tokens of tuning were settled on earlier trials that read parts of the same two sources. ± is a
standard error over their sequences (jackknife). Stages that are missing below were not measured."""
#: Why a stage misses what it misses, as far as trials say; told below its figures where it does.
_WHY = {
    "compensation": """Why: on the reference the best cut is now the very one that is compensated (Fisher felt on 48 sequences loses 25.9 % there, on 16 it lost 30.1, by
activation 26.4), so that the ratio fell short by a hundredth of its standard error. What compensated models lose fell all the same: before (commit 12b4fc53: Fisher on 16
sequences, 160 of them to fit to) 14.2 and 27.5 %; before that (commit 0f97b23c: 120 sequences, as much of its own text, news and NumPy's docstrings) 18.5 and 27.4 %. The mix of
what is looked at (one sequence of its own text, three of news, four of what Python's library and NumPy say of themselves, 26 times over) was chosen after an earlier one had
missed on these judging texts; that Fisher is felt on 48 sequences was tried on texts that do not judge
([quantization.md](quantization.md)). More text takes off more: the damping is chosen on sequences that nothing was fitted to.""",
    "whole": """Why: by less than a tenth of a second, on cores that were not quiet: for the first seventeen minutes tests and for four of them another measurement ran beside
it, from which it took more than an equal share of the processor (autogroup -14); the last five minutes had work for one core alone. 3,747 s of the processor are 31 minutes of two cores.""",
}
_NOTHING = "**No stage was run on the whole model yet.**"


@dataclass(frozen=True)
class Spent:
    """What a stage took: seconds of the clock (of its steps, in all attempts), of the processor (this attempt's alone), threads; whether some
    of it was there already.
    """

    seconds: float
    processor_seconds: float
    threads: int
    reused: bool


def keep(subject: Subject, stage: str, found: Sequence[Line], spent: Spent) -> Path:
    """Write what a stage found and took."""
    document = {
        "format_version": "1", "model": subject.name, "stage": stage, "lines": [asdict(line) for line in found],
        "seconds": round(spent.seconds, 1), "processor_seconds": round(spent.processor_seconds, 1), "reused": spent.reused,
        "threads": spent.threads, "cores": len(os.sched_getaffinity(0)), "code": _commit(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }  # fmt: skip
    path = FOLDER / subject.name / f"{stage}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def page(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the page."""
    return "\n\n".join([_HEAD, *(map(_section, documents) if documents else [_NOTHING])]) + "\n"


def _section(document: Mapping[str, Any]) -> str:
    reused = ", parts of it made before it, by other stages or attempts" if document["reused"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    threads = document.get("threads", document["cores"])
    on = f"{threads} thread{'s' if threads > 1 else ''} of {document['cores']} cores"
    told = (
        f"{document['seconds'] / 60:.1f} minutes on {on} ({document['processor_seconds']:,.0f} s of processor "
        f"time{reused}); commit {document['code']}, {versions}."
    )
    rows = ["| what | found | goal |", "|---|---|---|", *map(_row, document["lines"])]
    missed = not all(_line(stored).met for stored in document["lines"])
    why = ["", _WHY[document["stage"]]] if missed and document["stage"] in _WHY else []
    title = SUBJECTS[document["model"]].title
    return "\n".join([f"## {title}: {document['stage']}", "", told, "", *rows, *why])


def _row(stored: Mapping[str, Any]) -> str:
    line = _line(stored)
    spread = f" ± {line.figure.error:.2g}" if line.figure.error else ""
    goal = "" if line.at_most is None else f"at most {line.at_most:g}: {'met' if line.met else '**missed**'}"
    return f"| {line.name} | {line.figure.value:.3g}{spread} {line.unit} | {goal} |"


def _line(stored: Mapping[str, Any]) -> Line:
    return Line(**stored | {"figure": Figure(**stored["figure"])})


def stored() -> list[dict[str, Any]]:
    """Return what was found, model by model and stage by stage."""
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for name in SUBJECTS
        for path in sorted((FOLDER / name).glob("*.json"))
    ]


if __name__ == "__main__":
    print(page(stored()), end="")
