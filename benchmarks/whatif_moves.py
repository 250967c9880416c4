"""How long the what-if page's plan takes to follow a move of one control.

    python -m benchmarks.whatif_moves [SPEC…] [-n 30] [--served | --keep]

N moves, each of one control from where the last one left off, no setting twice. Without `--served`: planned in this process, one after the
other, nothing computed ahead; processor milliseconds, and those with what came nearest, which the page asks for once a hand rests. With it: asked of the page's own server, which plans ahead between moves (`--pause`
seconds each); wall milliseconds, as a person waits, so on a quiet machine.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlencode

from benchmarks import measured
from passes.ir.sources import open_model
from planner.report.page import render
from planner.spec.parse import load_spec
from planner.spec.spec import Spec
from planner.whatif.answer import answer, others, searched
from planner.whatif.controls import State, controls, state_of
from planner.whatif.server import Server

ROOT = Path(__file__).parent.parent
#: An 8B, a 32B, a 70B.
SPECS = tuple(
    ROOT / "examples" / f"{name}.yaml" for name in ("llama-3.1-8b-l4", "qwen2.5-32b-rtx4090", "llama-3.3-70b-rtx4090")
)
#: Milliseconds in which the page is to follow a hand.
GOAL = 200
#: Moves until a hand begins anew at the spec.
_LEGS = 6


def moves(spec: Spec, count: int, seed: int = 0) -> Iterator[State]:
    """Give settings, each one move of one control away from the one before, none twice: a slider by a step, a list to any of its options;
    every sixth move starts again at the spec.
    """
    known, choose = controls(spec), random.Random(seed)
    own = {control.name: control.own for control in known}
    seen = [own]
    while len(seen) <= count:
        before = own if len(seen) % _LEGS == 1 else seen[-1]
        control = choose.choice(known)
        place = control.values.index(before[control.name])
        near = (place - 1, place + 1) if control.slides else range(len(control.values))
        state = {
            **before,
            control.name: control.values[choose.choice([n for n in near if 0 <= n < len(control.values)])],
        }
        if state not in seen:
            seen.append(state)
            yield state_of(state, known)


def alone(spec: Spec, count: int) -> tuple[list[float], list[float]]:
    """Processor milliseconds of each move, planned in this process: until the plan is there, and until what came nearest is."""
    source = open_model(spec.model, revision=spec.revision, assume=spec.assume)

    def plan(state: State) -> tuple[float, float]:
        began = time.process_time()
        found = searched(spec, source, state)
        render("plan.html.j2", answer=answer(found, state))
        there = time.process_time()
        render("others.html.j2", others=others(found))
        return 1000 * (there - began), 1000 * (time.process_time() - began)

    plan({})  # the page's first plan, before anything moves
    gc.freeze()
    first, whole = zip(*map(plan, moves(spec, count)), strict=True)
    return list(first), list(whole)


def served(spec: Spec, count: int, pause: float) -> list[float]:
    """Wall milliseconds of each move, asked of the page's server."""
    server = Server(spec)
    threading.Thread(target=server.serve, daemon=True).start()

    def get(state: State) -> None:
        with urllib.request.urlopen(f"{server.url}plan?{urlencode(state)}") as reply:
            reply.read()

    get({})
    out = []
    for state in moves(spec, count):
        time.sleep(pause)
        out.append(_milliseconds(lambda state=state: get(state), time.perf_counter))
    server.close()
    return out


def _milliseconds(work: Callable[[], None], clock: Callable[[], float]) -> float:
    began = clock()
    work()
    return 1000 * (clock() - began)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the median, the 95th percentile and the longest for each spec."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", type=Path, default=SPECS, metavar="SPEC")
    parser.add_argument("-n", "--moves", type=int, default=30)
    parser.add_argument("--served", action="store_true", help="ask the page's server, and measure what a person waits")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between moves of a hand, with --served")
    parser.add_argument("--keep", action="store_true", help="keep the figures of this process for the page")
    asked = parser.parse_args(argv)
    load_before, found = os.getloadavg()[0], []
    print(f"{'wall' if asked.served else 'processor'} milliseconds of {asked.moves} moves; the goal is {GOAL}")
    for path in asked.specs:
        spec = load_spec(path)
        if asked.served:
            print(_line(path.stem, served(spec, asked.moves, asked.pause)), flush=True)
            continue
        plans, nearest = alone(spec, asked.moves)
        found.append({"spec": path.stem, "plan": plans, "others": nearest})
        for part, taken in (("plan", plans), ("with what came nearest", nearest)):
            print(_line(f"{path.stem}: {part}", taken), flush=True)
    if asked.keep and not asked.served:
        measured.write("what-if", "python -m benchmarks.whatif_moves --keep", found, load_before)


def p95(taken: Sequence[float]) -> float:
    """Return what 95 of 100 are within."""
    return statistics.quantiles(taken, n=20, method="inclusive")[-1]


def _line(name: str, taken: Sequence[float]) -> str:
    within = f"{sum(each <= GOAL for each in taken)} of {len(taken)} within {GOAL}"
    return f"{name:46} median {statistics.median(taken):6.0f}   p95 {p95(taken):6.0f}   longest {max(taken):6.0f}   {within}"


if __name__ == "__main__":
    main()
