"""The simulated scheduler against the engine's own: every step's requests and their tokens, and how often blocks were lost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from targets.simulation.arrivals import Arrivals, burst, closed_loop, poisson
from targets.simulation.lengths import fixed, spread
from targets.simulation.scheduler import Batch, Cache, Request, Rules, Scheduler
from targets.simulation.simulate import Host, simulate
from tests.engine.asked import answers_of

pytestmark = pytest.mark.engine


def _mixed(count: int) -> list[tuple[int, int]]:
    return list(zip(spread(550, 0.8, count), spread(170, 0.88, count, seed=1), strict=True))


def _same(prompt: int, answer: int, count: int) -> list[tuple[int, int]]:
    return list(zip(fixed(prompt, count), fixed(answer, count), strict=True))


def _long(count: int) -> list[tuple[int, int]]:
    """Prompts of several steps' budgets."""
    return list(zip(spread(5000, 0.7, count), spread(170, 0.88, count, seed=1), strict=True))


@dataclass(frozen=True)
class Case:
    name: str
    arrivals: Arrivals
    lengths: list[tuple[int, int]]
    tokens: int = 8192
    sequences: int = 256
    blocks: int = 20_000
    delay: float = 0.0
    prefix: int = 0
    whole_prompt: bool = True
    caching: bool = False

    @property
    def caches(self) -> bool:
        return self.caching or self.prefix > 0

    def asked(self, lag: int) -> dict[str, object]:
        return {
            "name": f"{self.name}/{lag}", "lag": lag, "tokens": self.tokens, "sequences": self.sequences, "blocks": self.blocks,
            "prefix": self.prefix, "caching": self.caches, "whole_prompt": self.whole_prompt, "due": list(self.arrivals.due),
            "at_once": self.arrivals.at_once, "delay": self.delay, "lengths": self.lengths,
        }  # fmt: skip


CASES = [
    Case("burst", burst(64), _same(512, 128, 64)),
    Case("burst, places short", burst(200), _mixed(200), tokens=2048, sequences=64),
    Case("burst, blocks short", burst(120), _mixed(120), tokens=2048, blocks=1500),
    Case("burst, equal, blocks short", burst(60), _same(300, 150, 60), tokens=2048, blocks=700),
    Case("closed loop", closed_loop(16, 64), _same(512, 128, 64), delay=0.5),
    Case("closed loop, mixed", closed_loop(24, 120), _mixed(120), tokens=2048, delay=0.5),
    Case("closed loop, blocks short", closed_loop(24, 120), _mixed(120), tokens=2048, blocks=700, delay=0.5),
    Case("one client", closed_loop(1, 6), _mixed(6), delay=0.5),
    Case("long prompts in chunks", closed_loop(4, 16), _same(5000, 40, 16), tokens=2048, delay=0.5),
    Case("rate", poisson(0.11, 80), _mixed(80), tokens=2048, delay=0.25),
    Case("rate, clustered, at most 12", poisson(0.2, 80, 0.4, at_once=12), _mixed(80), tokens=2048, delay=0.25),
    Case("answers of one token", burst(40), _same(300, 1, 40), tokens=2048),
    Case("shared prefix", closed_loop(12, 60), _mixed(60), tokens=2048, delay=0.5, prefix=100),
    Case("shared prefix, places short", burst(60), _mixed(60), tokens=2048, sequences=16, prefix=64),
    Case("first chunk must fit", burst(30), _same(3000, 60, 30), tokens=2048, blocks=900, whole_prompt=False),
    Case("blocks lost and found", burst(60), _same(300, 150, 60), tokens=2048, blocks=700, caching=True),
    Case("blocks lost and found, mixed", closed_loop(24, 120), _mixed(120), tokens=2048, blocks=700, delay=0.5, caching=True),
    Case("shared prefix, blocks short", closed_loop(24, 120), _mixed(120), tokens=2048, blocks=700, delay=0.5, prefix=64),
    Case("long prompts, blocks lost and found", burst(24), _long(24), tokens=2048, blocks=1100, caching=True),
    Case("long prompts, first chunk must fit", burst(24), _long(24), tokens=2048, blocks=1100, caching=True, whole_prompt=False),
    Case("long prompts at a rate, blocks short", poisson(0.05, 40), _long(40), tokens=1024, blocks=900, delay=0.25, caching=True),
    Case("budget of one token a sequence", burst(120), _same(40, 60, 120), tokens=64, sequences=64, caching=True),
]  # fmt: skip


class _Recorded(Scheduler):
    """The scheduler, writing down what each step holds."""

    def __init__(self, rules: Rules, cache: Cache) -> None:
        super().__init__(rules, cache)
        self.steps: list[list[list[int]]] = []

    def compose(self) -> Batch:
        batch = super().compose()
        chunks = {request: tokens for request, tokens, _ in batch.chunks}
        held = {request: 1 for request in self.running if request not in chunks and request.end >= self.step}
        if held or chunks:
            self.steps.append(sorted([request.number, tokens] for request, tokens in {**held, **chunks}.items()))
        assert len(held) == batch.decode
        return batch

    def skip(self, steps: int) -> list[Request]:
        held = sorted([request.number, 1] for request in self.running if request.end > self.step)
        assert len(held) == self.quiet()[1]
        self.steps += [held] * steps
        return super().skip(steps)


def _ours(case: Case, lag: int) -> tuple[list[list[list[int]]], int]:
    blocks = case.blocks - 1  # one is the null block
    scheduler = _Recorded(
        Rules(case.tokens, case.sequences, lag, case.whole_prompt),
        Cache(blocks, prefix=case.prefix, remembers=case.caches),
    )
    run = simulate(lambda _: 1.0, scheduler, case.arrivals, case.lengths, Host(case.delay))
    return scheduler.steps, run.preemptions


@pytest.fixture(scope="module")
def scheduled(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What the engine schedules, by case."""
    file = tmp_path_factory.mktemp("scheduler") / "cases.json"
    file.write_text(json.dumps([case.asked(lag) for case in CASES for lag in (0, 1)]))
    return answers_of(engine_python, "real_scheduler.py", file, 600)


@pytest.mark.parametrize("lag", [0, 1], ids=["sync", "async"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_step_holds_what_the_engines_own_scheduler_gives_it(
    case: Case, lag: int, scheduled: dict[str, dict[str, object]]
) -> None:
    steps, preempted = _ours(case, lag)
    theirs = scheduled[f"{case.name}/{lag}"]
    assert len(steps) == len(theirs["steps"])  # type: ignore[arg-type]
    assert steps == theirs["steps"]
    assert preempted == theirs["preempted"]
