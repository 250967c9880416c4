"""The simulated generator against ExLlamaV2's own, with a model that answers zeros: every iteration's chunks, batch and contexts."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from targets.simulation.exllama import Generator
from targets.simulation.lengths import spread
from targets.simulation.scheduler import Cache, Request
from tests.backends.conftest import environment


def _mixed(count: int, mean: int = 900) -> list[tuple[int, int]]:
    return list(zip(spread(mean, 0.9, count), spread(60, 0.9, count, seed=1), strict=True))


@dataclass(frozen=True)
class Case:
    """A workload: `due` is the iteration that each job is enqueued before; all at once where it is empty."""

    name: str
    lengths: list[tuple[int, int]]
    chunk: int = 2048
    sequences: int = 20
    pages: int = 400
    due: list[int] = field(default_factory=list)

    def asked(self) -> dict[str, object]:
        return asdict(self) | {"due": self.due or [0] * len(self.lengths)}


CASES = [
    Case("alone", [(700, 40)]),
    Case("all at once", _mixed(24)),
    Case("long prompts in chunks", [(5000, 30)] * 6, pages=200),
    Case("places short", _mixed(30), sequences=4),
    Case("pages short, overtaken", _mixed(40, 1500), pages=24),
    Case("whole pages", [(256, 256)] * 9 + [(257, 255)] * 9 + [(1, 256)] * 9, pages=12),
    Case("by and by", _mixed(40), due=list(range(0, 200, 5)), pages=30),
    Case("small chunks", _mixed(12, 2000), chunk=512),
]


def _ours(case: Case) -> list[list[object]]:
    generator = Generator(case.chunk, case.sequences, Cache(case.pages, 256))
    coming = sorted(zip(case.asked()["due"], range(len(case.lengths)), case.lengths, strict=True))  # type: ignore[call-overload]
    held: list[list[object]] = []
    number = 0
    while coming or not generator.idle:
        while coming and coming[0][0] <= number:
            _, each, (prompt, answer) = coming.pop(0)
            generator.add(Request(each, prompt, answer))
        batch = generator.compose()
        number += 1
        if not batch.empty:
            held.append([[[tokens, before] for _, tokens, before in batch.chunks], batch.decode, batch.context])
    return held


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[object]]]:
    """What ExLlamaV2 computes, by case."""
    file = tmp_path_factory.mktemp("generator") / "cases.json"
    file.write_text(json.dumps([case.asked() for case in CASES]))
    script = Path(__file__).with_name("real_generator.py")
    done = subprocess.run(
        [str(environment("tools")), str(script), str(file)],
        capture_output=True,
        text=True,
        cwd=file.parent,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {str(answer["name"]): answer["iterations"] for answer in answers}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_iteration_holds_what_the_engines_own_generator_gives_it(
    case: Case, generated: dict[str, list[list[object]]]
) -> None:
    assert _ours(case) == generated[case.name]
