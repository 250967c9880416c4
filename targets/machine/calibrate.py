"""`optimize calibrate`: measures this machine and keeps what it found, so that predictions say `measured`.

Without a served model: memory bandwidth, matrix rates by format, launch and all-reduce, in well under a minute. What cannot be this
card's work is refused, and nothing is kept. With one: a short load over its OpenAI API, requests alone and several at once, from which
the engine's own constants are fitted; its priors are the shipped fit, so that a few requests are enough.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from passes.errors import InputError, TightfitError
from passes.ir.model import ModelIR
from passes.record import dataclass
from targets.engines.engine import Parallel, Settings, find_engine
from targets.gpu import Gpu, find_gpu
from targets.machine.profile import Profile, believed_profile, implausible, measured_card, measured_values, profile_path
from targets.serve.drive import warm_up
from targets.serve.load import Load, LoadTiming, load
from targets.serve.process import EngineError, Served
from targets.simulation.metrics import figures
from targets.simulation.simulate import Host, simulate
from targets.simulation.step_times import StepTimes
from targets.speed.card import card_of, generation_of
from targets.speed.closed_loop import Loop, Means, closed_loop
from targets.speed.rates import engine_values, rates_from
from targets.speed.step import Step, step_seconds
from targets.speed.work import work_of
from targets.workload import Workload

PROBE = Path(__file__).with_name("probe_program.py")

#: The load: short and long prompts tell host time from prefill rate, several clients what a further request costs a step, whose prompts
#: are read in one.
LOAD = (Load(16, 32, 1, 3), Load(256, 32, 1, 3), Load(1024, 16, 1, 2), Load(256, 32, 8, 8), Load(64, 16, 32, 32))

#: What a load can tell of an engine on one machine, with the spread (log space) of its prior. What a running sequence costs a step depends
#: on the machine most: on a processor without AVX-512 it is hundreds of times what a card's host takes.
_TOLD = {
    "memory": 0.2, "compute": 0.4, "attention": 0.5, "token_s": 1.0, "layer_s": 1.0, "step_s": 1.0, "host_s": 1.0,
    "host_token_s": 0.3, "cache": 0.3, "sequence_s": 3.0,
}  # fmt: skip

#: How far the memory of a card may be from what it is asked to be, relative to it: drivers set some aside.
_SAME_MEMORY = 0.05

#: Scale of an unremarkable error of one timing, and of the first tokens of several clients.
_NOISE, _CHANCE = 0.04, 0.08


@dataclass(frozen=True, slots=True)
class Observation:
    """One point of the load: its median seconds to the first token and for a further one."""

    load: Load
    ttft_s: float
    tpot_s: float

    @classmethod
    def of(cls, timing: LoadTiming) -> Observation:
        """Take it from a measured timing."""
        return cls(timing.load, timing.ttft_ms.median / 1e3, timing.tpot_ms.median / 1e3)

    def errors(self, told: Means) -> list[float]:
        """Return how far a prediction lies from it, in log space, as shares of an unremarkable error: of the first token, of a further one.
        Which of several clients' prompts are read in a step of their own is chance, so their first tokens tell less.
        """
        first = _NOISE if self.load.concurrency == 1 else _CHANCE
        return [math.log(told.ttft_s / self.ttft_s) / first, math.log(told.tpot_s / self.tpot_s) / _NOISE]


def calibrate_machine(gpu: Gpu, python: Path | None = None, *, seconds: float = 20.0) -> Profile:
    """Measure this machine's device and store the profile; what an earlier load found is kept.

    `python`: the Python with torch (the engine's own, so that its kernels are timed); None: this one. Raises InputError, and stores
    nothing, where it has no torch, where torch sees another device, and where what was measured cannot be the card's own work.
    """
    found = _probed(python or Path(sys.executable), seconds)
    _refuse_other_device(gpu, found)
    if wrong := implausible(gpu, found):
        raise InputError(
            f"what was measured cannot be what {gpu.name} does: {'; '.join(wrong)}",
            remedy="close what else runs on the card, give its clocks back to the driver (nvidia-smi -rgc), and calibrate again; nothing "
            "was kept",
        )
    before, _ = believed_profile(gpu)
    return store(Profile(gpu.name, found, before.engines if before else {}))


def _probed(python: Path, seconds: float) -> dict[str, Any]:
    """What the probe prints under a Python. Raises InputError where it fails or takes far longer than it should."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command, limit = [str(python), str(PROBE), "--seconds", str(seconds)], 30 * seconds
    try:
        result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"this machine was not measured within {limit:.0f} s",
            remedy="close what else runs here, and calibrate again",
        ) from error
    if result.returncode:
        said = error_line(result.stderr)
        raise InputError(
            f"this machine could not be measured: {said}",
            remedy="close what else runs on the card"
            if "out of memory" in said
            else "name a Python that has torch: --engine or TIGHTFIT_ENGINE",
        )
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def error_line(stderr: str) -> str:
    """Return the line of a program's output that says what went wrong: the last one that names an error, else the last."""
    lines = stderr.strip().splitlines() or ["no output"]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines)[-1]


def is_device(gpu: Gpu, found: Mapping[str, Any]) -> bool:
    """Return whether a probe found the device that was asked for: a card by its name, one that the catalog lacks by its memory."""
    if gpu.is_cpu or found["device"] == "cpu":
        return gpu.is_cpu and found["device"] == "cpu"
    try:
        return find_gpu(found["device"]).name == gpu.name
    except InputError:
        return math.isclose(found["memory_bytes"], gpu.memory_bytes.value, rel_tol=_SAME_MEMORY)


def _refuse_other_device(gpu: Gpu, found: Mapping[str, Any]) -> None:
    """Raise InputError where another device was measured than the one asked for."""
    if is_device(gpu, found):
        return
    seen = found["device"]
    named = f'--gpu "{seen}", or CUDA_VISIBLE_DEVICES to choose what torch sees (empty: the processor)'
    raise InputError(
        f"asked for {gpu.name}, but torch sees {seen}",
        remedy="--gpu cpu, or a torch with CUDA" if seen == "cpu" else named,
    )


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server runs: a model, under an engine, on so many of a card."""

    ir: ModelIR
    engine: str
    gpu: Gpu
    parallel: Parallel


def calibrate_served(url: str, name: str, model: ServedModel, loads: Sequence[Load] = LOAD) -> Profile:
    """Put a short load on a served model and store the engine's constants that explain it.

    `url`: the server's base, `http://host:port`; `name`: by which it serves the model. Needs a profile of the machine.
    """
    host, port = _address(url)
    profile, _ = believed_profile(model.gpu)
    if profile is None:
        raise InputError(
            f"{model.gpu.name} was never measured", remedy="run `optimize calibrate` without a server first"
        )
    served = Served(host, port, Path(os.devnull), 0.0)
    fits = [asked for asked in loads if asked.input_tokens + asked.output_tokens <= model.ir.max_context]
    try:
        timings = [_timed(served, name, asked) for asked in fits]
    except EngineError as error:
        raise TightfitError(f"{url} did not answer: {error}", remedy="start the server, then calibrate") from error
    seen = [Observation.of(timing) for timing in timings if not _queued(timing)]
    values = fit_load(seen, model, profile)
    return store(replace(profile, engines={**profile.engines, model.engine: values}))


def _timed(served: Served, name: str, asked: Load) -> LoadTiming:
    warm_up(served, name, asked)
    return load(served, name, asked)


def _queued(timing: LoadTiming) -> bool:
    """Whether the server answers fewer at once than there were clients: the last first token lies as far behind the median one as an
    answer takes, or half of that where two groups took turns.
    """
    answer_ms = (timing.load.output_tokens - 1) * timing.tpot_ms.median
    return timing.load.concurrency > 1 and timing.ttft_ms.p99 > timing.ttft_ms.median + 0.45 * answer_ms


def _address(url: str) -> tuple[str, int]:
    """Host and port of a server."""
    try:
        address = urllib.parse.urlsplit(url)
        host, port = address.hostname, address.port or 80
    except ValueError:
        host, port = None, 0
    if not host or not host.isascii():
        raise InputError(f"no server address: {url}", remedy="write http://host:port")
    return host, port


def fit_load(seen: Sequence[Observation], model: ServedModel, profile: Profile) -> dict[str, float]:
    """Find the constants of `_TOLD` that explain a load, shrunk towards the shipped fit on the measured device."""
    import numpy as np
    from scipy.optimize import least_squares

    start = measured_values(engine_values(model.engine), model.engine, model.gpu, replace(profile, engines={}))
    names = [name for name in _TOLD if start.get(name, 0.0) > 0]

    def values_of(x: Sequence[float]) -> dict[str, float]:
        return {name: start[name] * math.exp(delta) for name, delta in zip(names, x, strict=True)}

    def residuals(x: Sequence[float]) -> list[float]:
        out = [delta / _TOLD[name] for name, delta in zip(names, x, strict=True)]
        for point in seen:
            out += point.errors(predict(point.load, model, profile, start | values_of(x)))
        return out

    found = least_squares(residuals, np.zeros(len(names)), loss="soft_l1", diff_step=1e-3, max_nfev=40)
    return values_of([float(delta) for delta in found.x])


def predict(asked: Load, model: ServedModel, profile: Profile, values: Mapping[str, float]) -> Means:
    """Predict the medians of a closed loop by given constants: of several clients, who start together, by simulating the engine's
    scheduler, as what is predicted later is: their prompts share steps.
    """
    ir, gpu, target, tp = model.ir, model.gpu, find_engine(model.engine), model.parallel.tp
    clients, settings = asked.concurrency, Settings(parallel=model.parallel)
    workload = Workload(ir.max_context, clients, asked.input_tokens, asked.output_tokens, requests=asked.requests)
    work, card = work_of(ir), measured_card(card_of(target, gpu), profile)
    rates = rates_from(values, generation_of(gpu))
    cache_bytes = target.cache_bytes(ir)

    def step_s(step: Step) -> float:
        return step_seconds(work, card, rates, step, tp)

    queue = (
        target.queue(gpu, settings, workload, target.memory(ir, gpu, settings, workload).kv) if clients > 1 else None
    )
    if queue is None:
        budget = target.scheduler(gpu, settings, workload).tokens
        loop = Loop(
            asked.input_tokens, asked.output_tokens, clients, clients, budget, cache_bytes, asked.requests / clients,
            rates.request_s(tp), rates.host_token_s,
        )  # fmt: skip
        return closed_loop(step_s, loop)
    host = Host(rates.request_s(tp), rates.serial_s, rates.host_token_s)
    lengths = [(asked.input_tokens, asked.output_tokens)] * asked.requests
    seen = figures(simulate(StepTimes(step_s, cache_bytes), queue, asked.arrivals, lengths, host))
    assert seen.tpot is not None
    return Means(seen.ttft.statistic("p50"), seen.tpot.statistic("p50"), clients)


def store(profile: Profile) -> Profile:
    """Write a profile, whole or not at all."""
    path = profile_path(profile.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(profile.as_json(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(path)
    return profile
