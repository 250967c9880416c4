"""How long `optimize plan` and `optimize check` take: whole processes from a cold start, then the same through Python, warm.

    python -m benchmarks.plan_speed [-n 15] [--loads | --keep]      --loads: simulated loads alone

Median and spread of N runs. Wall time is what a person waits; on a busy machine processor time says what the command itself
costs. No network, no torch.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks import measured

ROOT = Path(__file__).parent.parent
OPTIMIZE = Path(sys.executable).with_name("optimize")
#: what is run → the goal in seconds
GOALS: dict[tuple[str, ...], float] = {
    ("plan", "examples/llama-3.3-70b-rtx4090.yaml"): 0.5,
    ("plan", "examples/qwen2.5-32b-rtx4090.yaml"): 0.5,
    ("check", "--model", "llama-3.1-8b", "--gpu", "24GB"): 0.35,
}


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Wall and processor seconds of one run. Exit 3 (nothing fits) is an answer too."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    ).returncode
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def timings(work: Callable[[], object], runs: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of each run; one more before, that imports and reads."""
    work()
    out = []
    for _ in range(runs):
        started = clock()
        work()
        out.append(clock() - started)
    return out


def loads(runs: int) -> Iterator[tuple[str, float, list[float]]]:
    """Simulations of 1,000 requests of 200 tokens in the mean, each on step times that nobody asked before; processor seconds."""
    from passes.ir.sources import open_model
    from targets.engines.engine import Settings, find_engine
    from targets.gpu import find_gpu
    from targets.simulation.serving import Load, load_of
    from targets.simulation.simulate import simulate
    from targets.simulation.step_times import StepTimes
    from targets.speed.estimate import asked
    from targets.workload import Workload

    engine, gpu, settings = find_engine("vllm"), find_gpu("H100 SXM"), Settings()
    ir = open_model("meta-llama/Llama-3.1-8B").ir

    def run(load: Load, workload: Workload) -> None:
        memory = engine.memory(ir, gpu, settings, workload)
        question = asked(engine, ir, gpu, settings, workload, memory)
        queue = engine.queue(gpu, settings, workload, memory.kv)
        assert queue is not None
        simulate(StepTimes(question.run.stage, question.loop.cache_bytes), queue, load.arrivals, load.lengths)

    described = {
        "closed loop of 64 clients": {"concurrency": 64}, "the same, of unlike lengths": {"concurrency": 64, "output_p95": 500},
        "burst of chats": {"rate": math.inf}, "rate of 16/s": {"rate": 16.0}, "rate of 8/s": {"rate": 8.0},
    }  # fmt: skip
    for name, fields in described.items():
        workload = Workload(4096, input_tokens=512, output_tokens=200, requests=1000, **fields)  # type: ignore[arg-type]
        load = load_of(workload)
        yield (
            f"1,000 requests x 200 tokens, {name}",
            0.05,
            timings(partial(run, load, workload), runs, time.process_time),
        )


def warm(runs: int) -> Iterator[tuple[str, float, list[float]]]:
    """What is done, its goal in seconds, and the seconds of each run; everything imported and read once before."""
    from passes.algorithms.knapsack import Unit, allocate
    from passes.ir.sources import open_model
    from planner.check import check
    from planner.choice.search import search
    from planner.spec.parse import load_spec

    yield "check of a catalog model", 0.005, timings(lambda: check("llama-3.1-8b", "24GB", context=8192), runs)
    spec = load_spec(ROOT / "examples" / "llama-3.3-70b-rtx4090.yaml")
    ir = open_model(spec.model).ir
    count = search(spec, ir).searched
    yield f"search of the 70B example, {count} candidates", count / 10_000, timings(lambda: search(spec, ir), runs)
    rng = random.Random(0)
    units = []
    for name in (f"{layer}.{kind}" for layer in range(80) for kind in ("attention", "mlp")):
        base = 151_000_000 if "attention" in name else 704_000_000
        level, steep = rng.lognormvariate(0, 1), rng.uniform(3, 5)
        bits = [2.14 + 0.33 * option for option in range(19)]
        sizes = tuple(int(base * b / 8) + rng.randint(0, 100_000) for b in bits)
        units.append(Unit(name, sizes, tuple(level * steep ** (-b) * rng.uniform(0.8, 1.2) for b in bits)))
    budget = int(4.65 * 80 * 855_000_000 / 8)
    yield "allocation of 80 layers x 2 slots x 19 options", 1.0, timings(lambda: allocate(units, budget), runs)


def figures(name: str, seconds: Sequence[float], goal: float) -> str:
    """A line of the table, in milliseconds."""
    low, middle, high = (1000 * f(seconds) for f in (min, statistics.median, max))
    return f"  {name:9s} median {middle:7.1f} ms   {low:.1f} to {high:.1f}   goal {1000 * goal:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=15, help="runs of each command")
    parser.add_argument("--loads", action="store_true", help="simulated loads alone")
    parser.add_argument(
        "--keep", action="store_true", help="keep the figures for the page, those of whole processes left out"
    )
    options = parser.parse_args()
    runs, load_before, found = options.n, os.getloadavg()[0], []
    print(f"load before: {load_before:.1f} on {os.cpu_count()} cores; {runs} runs of each, one more to warm the disk")
    with tempfile.TemporaryDirectory() as folder:
        for arguments, goal in () if options.loads or options.keep else GOALS.items():
            saved = ["-o", str(Path(folder) / "a.plan.json")] if arguments[0] == "plan" else []
            command = [str(OPTIMIZE), *arguments, *saved]
            timed(command)
            walls, cpus = zip(*(timed(command) for _ in range(runs)), strict=True)
            print(f"optimize {' '.join(arguments)}")
            for name, seconds in (("wall", walls), ("processor", cpus)):
                print(figures(name, seconds, goal))
    for name, timed_parts in (("processor", loads(runs)), ("warm", () if options.loads else warm(runs))):
        for what, goal, seconds in timed_parts:
            print(what)
            print(figures(name, seconds, goal))
            found.append({"what": what, "goal": goal, "seconds": seconds})
    if options.keep:
        measured.write("planner-warm", "python -m benchmarks.plan_speed --keep", found, load_before)


if __name__ == "__main__":
    main()
