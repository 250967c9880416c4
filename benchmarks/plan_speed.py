"""How long `optimize plan` and `optimize check` take: whole processes from a cold start, then the same through Python, warm.

    python -m benchmarks.plan_speed [-n 7] [--cold | --loads]      --cold: whole processes alone; --loads: simulated loads alone

Median and spread of N runs. Wall time is what a person waits; on a busy machine processor time says what the command itself
costs, and `imports` how much of it goes to loading the modules that it loads. Modules are compiled beforehand, as an installed
package's are; `uncompiled` is a run that finds none compiled and may write none. No network, no torch.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
OPTIMIZE = Path(sys.executable).with_name("optimize")
#: what is run → the goal in seconds
GOALS: dict[tuple[str, ...], float] = {
    ("plan", "examples/llama-3.3-70b-rtx4090.yaml"): 0.5,
    ("plan", "examples/qwen2.5-32b-rtx4090.yaml"): 0.5,
    ("check", "--model", "llama-3.1-8b", "--gpu", "24GB"): 0.35,
}


#: Runs a command and names the modules that it loaded; and loads modules, those that cannot be loaded alone left out.
_NAME = """
import sys
from planner.cli.main import main
try: main()
except SystemExit: print(*sys.modules, file=sys.stderr)
"""
_LOAD = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    try: import_module(name)
    except Exception: pass
"""


def environment(**changes: str) -> dict[str, str]:
    """Return what a run sees: no network, compiled modules read and written."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
        "HF_HUB_OFFLINE": "1", **changes
    }  # fmt: skip


def timed(command: Sequence[str], env: Mapping[str, str]) -> tuple[float, float]:
    """Return wall and processor seconds of one run. Exit 3 (nothing fits) is an answer too."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=env,
    ).returncode
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loading(arguments: Sequence[str]) -> list[str]:
    """Return the command that loads the modules which `optimize` loads for these arguments."""
    named = subprocess.run(
        [sys.executable, "-c", _NAME, *arguments], check=True, cwd=ROOT, env=environment(), capture_output=True, text=True
    )  # fmt: skip
    return [sys.executable, "-c", _LOAD, *(name for name in named.stderr.split() if name != "__main__")]


def cold(runs: int, folder: Path) -> Iterator[str]:
    """Give the lines on whole processes. `folder`: where plans may be saved."""
    for arguments, goal in GOALS.items():
        saved = ["-o", str(folder / "a.plan.json")] if arguments[0] == "plan" else []
        command, loads = [str(OPTIMIZE), *arguments, *saved], loading((*arguments, *saved))
        yield f"optimize {' '.join(arguments)}"
        timed(command, environment())
        walls, cpus = zip(*(timed(command, environment()) for _ in range(runs)), strict=True)
        yield figures("wall", walls, goal)
        yield figures("processor", cpus, goal)
        _, imports = zip(*(timed(loads, environment()) for _ in range(runs)), strict=True)
        share = statistics.median(imports) / statistics.median(cpus)
        yield figures("imports", imports, goal) + f"   {share:.0%} of the processor's"
        empty = environment(PYTHONPYCACHEPREFIX=str(folder / "none"), PYTHONDONTWRITEBYTECODE="1")
        yield figures("uncompiled", [timed(command, empty)[1]], goal)


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
        "burst of chats": {"rate": math.inf}, "rate of 16/s": {"rate": 16.0},
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
    return f"  {name:10s} median {middle:7.1f} ms   {low:.1f} to {high:.1f}   goal {1000 * goal:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=7, help="runs of each command")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--cold", action="store_true", help="whole processes alone")
    part.add_argument("--loads", action="store_true", help="simulated loads alone")
    asked = parser.parse_args()
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(f"load before: {load:.1f} on {cores} cores; {asked.n} runs of each, one more to warm the disk")
    if not asked.loads:
        with tempfile.TemporaryDirectory() as folder:
            for line in cold(asked.n, Path(folder)):
                print(line, flush=True)
    inside = [] if asked.cold else [("processor", loads)]
    if not asked.cold and not asked.loads:
        inside.append(("warm", warm))
    for name, timed_parts in inside:
        for what, goal, seconds in timed_parts(asked.n):
            print(what)
            print(figures(name, seconds, goal))


if __name__ == "__main__":
    main()
