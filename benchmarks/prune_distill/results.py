"""Results of a stage on disk, and the page of the documentation that follows from them.

benchmarks/data/prune_distill/<model>/<stage>.json     lines with spread and goal, versions, commit, threads, seconds of every step
python -m benchmarks.prune_distill.results > docs/pruning-results.md
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.prune_distill.bench import Figure, Line
from benchmarks.prune_distill.subject import SUBJECTS, Subject

FOLDER = Path(__file__).parent.parent / "data" / "prune_distill"
_PACKAGES = ("torch", "transformers", "accelerate", "safetensors")
_HEAD = """# Pruning and distillation, measured

Made by `python -m benchmarks.prune_distill.results` from what `python -m benchmarks.prune_distill` found (`--model gemma3` for the second
model), a file each stage under `benchmarks/data`. Whole models, fixed seeds. Nothing is fitted to the judging texts; the measure of importance,
the kinds of text that are looked at and the tokens of tuning were settled on earlier trials that read parts of the same two sources, and
compensation is fitted to 256 sequences of SmolLM2 since 208 had left 0.5007 of the rise on one of them. ± is a standard error over their
sequences (jackknife). Of Gemma 3 270M there is less of everything (`benchmarks/prune_distill/subject.py`), so its figures are no forecast of what it
can reach. Stages that are missing below were not measured."""
#: What the stages are called, in the order of the page.
TITLES = {
    "importance": "A fifth of the MLPs' channels gone: what importance is worth",
    "compensation": "The same, the others making up for what is gone", "narrowed": "The narrower model, distilled",
    "recovery": "A model without a fifth of its blocks, distilled", "blockwise": "Three bits, blocks tuned",
    "forecasts": "Forecasts after a fifth", "whole": "All stages",
}  # fmt: skip
#: Why a model misses what it misses in a stage, as far as trials say; told below its figures where it does.
_WHY = {
    (
        "gemma3",
        "compensation",
    ): """Why Gemma 3 270M misses on news: 32 sequences were what it was fitted to, where SmolLM2 had 256 (with 120 and 160 of them SmolLM2 lost
18.5 and 14.2 % on the reference, with 256 it loses 12.6), and 0.547 lies within a standard error of the goal. More were not tried.""",
    (
        "smollm2",
        "whole",
    ): """Why: the cores were not quiet. Beside the run went other work of the least priority (autogroup 19, load of the machine 13 to 33), and for six minutes of
processor time an engine of equal priority. 3,687 s of the processor are 31 minutes of two cores; on two quiet ones the run was not made. The run before (commit b9e6de7f, 208
sequences) took 40.0 minutes, it too beside other work.""",
}
#: Stages of which the measure of importance that was chosen for a model is part.
_CHOOSING = ("importance", "compensation", "narrowed")
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
    """Return the page: what was met and what was missed, then each stage with the models beside each other."""
    stages = {stage: [each for each in documents if each["stage"] == stage] for stage in TITLES}
    found = [_stage(stage, of_stage) for stage, of_stage in stages.items() if of_stage]
    return "\n\n".join([_HEAD, *([_goals(documents), *found] if found else [_NOTHING])]) + "\n"


def _goals(documents: Sequence[Mapping[str, Any]]) -> str:
    """How many goals each model meets, and by how much it misses which."""
    told = []
    for name, subject in SUBJECTS.items():
        asked = [
            (each["stage"], line)
            for each in documents
            if each["model"] == name
            for line in map(_line, each["lines"])
            if line.at_most is not None
        ]
        if asked:
            missed = [
                f"{stage}: {line.name} ({_figure(line)}, {line.at_most:g} at most)"
                for stage, line in asked
                if not line.met
            ]
            said = "missed: " + "; ".join(missed) if missed else "none missed"
            told.append(f"**{subject.title}**: {len(asked) - len(missed)} of {len(asked)} goals met, {said}.")
    return "\n\n".join(told)


def _stage(stage: str, documents: Sequence[Mapping[str, Any]]) -> str:
    """A section: how each model was measured, a table with a column for each, and why what is missed is."""
    subjects = [SUBJECTS[each["model"]] for each in documents]
    models = [subject.title for subject in subjects]
    told = [
        f"* {subject.title}{f', cut by {subject.chosen}' if stage in _CHOOSING else ''}: {_conditions(each)}"
        for subject, each in zip(subjects, documents, strict=True)
    ]
    columns = [
        {_row_of(line.name, subject.chosen): line for line in map(_line, each["lines"])}
        for subject, each in zip(subjects, documents, strict=True)
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    table = [
        f"| what | {' | '.join(models)} | goal |",
        "|---" * (len(models) + 2) + "|",
        *(_row(name, columns) for name in names),
    ]
    why = [_WHY[key] for each in documents if (key := (each["model"], stage)) in _WHY and _misses(each)]
    return "\n\n".join([f"## {TITLES[stage]}", "\n".join(told), "\n".join(table), *why])


def _row_of(name: str, chosen: str) -> str:
    """A figure's row, the same for models of which another measure of importance is compensated."""
    for said, row in ((f"cut by {chosen} over", "the chosen cut over"), (f"by {chosen}, compensated", "the chosen cut, compensated"),
                      (f"over cut by {chosen}", "over the chosen cut")):  # fmt: skip
        name = name.replace(said, row)
    return re.sub(r"best cut \(by \w+\)", "best cut", name)


def _misses(document: Mapping[str, Any]) -> bool:
    return not all(_line(stored).met for stored in document["lines"])


def _conditions(document: Mapping[str, Any]) -> str:
    reused = ", parts of it made before it, by other stages or attempts" if document["reused"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    threads = document.get("threads", document["cores"])
    on = f"{threads} thread{'s' if threads > 1 else ''} of {document['cores']} cores"
    return (
        f"{document['seconds'] / 60:.1f} minutes on {on} ({document['processor_seconds']:,.0f} s of processor "
        f"time{reused}); commit {document['code']}, {versions}."
    )


def _row(name: str, columns: Sequence[Mapping[str, Line]]) -> str:
    lines = [column.get(name) for column in columns]
    goal = next((f"at most {line.at_most:g}" for line in lines if line and line.at_most is not None), "")
    return f"| {name} | {' | '.join(_cells(lines))} | {goal} |"


def _cells(lines: Sequence[Line | None]) -> Iterator[str]:
    for line in lines:
        if line is None:
            yield "–"
        else:
            verdict = "" if line.at_most is None else f": {'met' if line.met else '**missed**'}"
            yield f"{_figure(line)}{verdict}"


def _figure(line: Line) -> str:
    spread = f" ± {line.figure.error:.2g}" if line.figure.error else ""
    return f"{line.figure.value:.3g}{spread} {line.unit}"


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
