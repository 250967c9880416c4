"""Fits the constants of the speed model on published measurements and writes `targets/speed/speed_fit.json`.

    python -m benchmarks.fit_speed [--check]      --check: print errors of the stored fit, change nothing

Rows: `benchmarks/data/speed_refs.jsonl` (one stream) and `serving_refs.jsonl` (closed loops); every row names its source. Every
constant has a physical meaning and a prior (value and spread in log space), so that what the rows do not tell stays sensible;
deviations by generation and kernel are shrunk towards the shared value. Errors are soft-L1 in log space. Interval widths are
quantiles of the errors of models that were left out whole.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from passes.ir.model import KVCache, ModelIR
from passes.ir.sources import open_model
from passes.quantize.format_names import pass_named
from targets.engines.engine import Parallel, Scheduler, Settings, find_engine
from targets.gpu import find_gpu
from targets.speed.card import card_of, generation_of
from targets.speed.closed_loop import Loop, Means, closed_loop
from targets.speed.estimate import requests_held, resident_requests
from targets.speed.rates import FIT, rates_from
from targets.speed.step import Card, step_seconds
from targets.speed.work import Work, work_of
from targets.workload import Workload

DATA = Path(__file__).parent / "data"

#: Constants of vLLM: (prior, spread in log space). Generations are CUDA compute capabilities; 9.0 is the reference.
VLLM: dict[str, tuple[float, float]] = {
    "memory": (0.85, 0.07), "memory@8.0": (1.0, 0.06), "memory@8.6": (1.0, 0.06), "memory@10": (0.95, 0.07),
    "memory.w8": (1.0, 0.1), "memory.w4": (0.95, 0.1), "memory.awq": (0.9, 0.1), "memory.w8a8": (1.0, 0.1),
    "memory.fp8": (1.0, 0.1), "memory.fp4": (0.95, 0.12), "memory.mx": (0.95, 0.12),
    "compute": (0.6, 0.15), "compute@8.0": (1.0, 0.15), "compute@8.6": (1.0, 0.15), "compute@10": (0.75, 0.15),
    "compute.w8": (0.8, 0.2), "compute.w4": (0.8, 0.2), "compute.awq": (0.8, 0.2), "compute.w8a8": (0.8, 0.2),
    "compute.fp8": (0.9, 0.15), "compute.fp4": (0.8, 0.2), "compute.mx": (0.9, 0.2),
    "expert_memory": (0.9, 0.15), "expert_compute": (0.4, 0.25),
    "cache": (0.85, 0.08), "attention": (0.65, 0.2),
    "layer_s": (4e-5, 0.25), "layer_s@8.0": (2.0, 0.4), "layer_s@8.6": (1.5, 0.4), "layer_s@10": (1.0, 0.15),
    "expert_layer_s": (3.5e-5, 0.3),
    "kernel_layer_s.fp8": (2e-5, 0.7), "kernel_layer_s.fp4": (1e-5, 0.7), "kernel_layer_s.mx": (5e-6, 0.7),
    "kernel_layer_s.w4": (1e-5, 0.7), "kernel_layer_s.w8": (1e-5, 0.7), "kernel_layer_s.awq": (1e-5, 0.7),
    "kernel_layer_s.w8a8": (1e-5, 0.7),
    "step_s": (3e-4, 0.5), "sequence_s": (1.2e-5, 0.4), "token_s": (1.5e-8, 0.5),
    "link_s": (6e-6, 0.3), "link": (0.7, 0.2), "tile": (15.0, 0.4), "routing": (0.9, 0.06),
    "host_s": (0.028, 0.3), "host_token_s": (3e-6, 0.7), "drift": (1.07, 0.07), "occupancy": (0.85, 0.06),
}  # fmt: skip

#: Versions of vLLM that the drift was seen over: 0.12 to 0.19. No row has bitsandbytes; its 4-bit kernel is assumed half as fast.
FIXED = {"newest": 19.0, "drift_span": 7.0, "memory.bnb": 0.5}

#: Constants of vLLM-CPU that its timings tell; peaks are those that `targets/machine/devices.py` assumes of a core. The 4-bit kernel's share of
#: them is the one that `targets/machine/probe_program.py` measured on the same machine (3.2 of 11 GB/s, 0.09 of 0.21 TFLOP/s).
CPU: dict[str, tuple[float, float]] = {
    "memory": (0.6, 0.2), "compute": (1.0, 0.2), "cache": (0.6, 0.3), "attention": (0.35, 0.3),
    "layer_s": (1e-4, 0.7), "step_s": (2e-3, 0.7), "host_s": (0.02, 0.7),
}  # fmt: skip
CPU_KERNELS = {"memory.w4": 0.29, "memory.awq": 0.29, "compute.w4": 0.43, "compute.awq": 0.43}

#: Constants of ExLlamaV2 that its rows tell; the others are vLLM's. Ampere is the reference.
EXLLAMA: dict[str, tuple[float, float]] = {
    "memory": (0.8, 0.1), "memory@8.9": (1.1, 0.1), "memory.exl-gptq": (1.0, 0.1), "compute": (0.5, 0.3), "compute@8.9": (1.0, 0.3),
    "layer_s": (1e-5, 0.5), "step_s": (8e-4, 0.3), "host_s": (1e-3, 0.01), "host_token_s": (1e-6, 0.01), "cache": (0.8, 0.1),
}  # fmt: skip

GPUS = {
    "A100 80GB": "A100 SXM4 80GB", "A100": "A100 SXM4 80GB", "H100": "H100 SXM", "B200": "B200 SXM", "H200": "H200 SXM",
    "h100_sxm": "H100 SXM", "h200_sxm": "H200 SXM", "b200_sxm": "B200 SXM", "b300_sxm": "B300 SXM",
}  # fmt: skip


def excluded(row: dict[str, Any]) -> bool:
    """Rows that contradict their conditions (235 GB of weights on one card of 141) or that eager kernels made.

    vLLM of 2023 had no CUDA graphs (and the table's links are PCIe, which it does not print); 0.4 left them beyond 8,192 tokens.
    """
    version = str(row.get("engine_version"))
    early = row["engine"] == "vLLM" and (version == "2023-10" or ("0.4." in version and (row["input_len"] or 0) > 8192))
    return bool(row.get("anomaly")) or ("235B" in row["model"] and row["tp"] == 1) or early


def fp8_cache(row: dict[str, Any]) -> bool:
    """Rows whose cache was fp8, which the table does not print: SemiAnalysis' InferenceX starts MiniMax-M2.5 so on Blackwell from vLLM
    0.19 on (`benchmarks/single_node/minimaxm2.5_fp8_b200.sh`), before in 16 bit. With caches of 16 bit, 19 of its rows would queue that
    did not: first tokens predicted 2 to 34 times too late.
    """
    newer = str(row.get("engine_version")).startswith(("0.19", "nightly"))
    return "MiniMax-M2.5" in row["model"] and row["gpu"] in ("b200_sxm", "b300_sxm") and newer


@dataclass(frozen=True)
class Case:
    """One measurement: the load, and what was measured (seconds): `tpot`, `ttft`, or the whole `request`.

    `held`: requests of the load's mean length whose cache fits at once.
    """

    id: str
    engine: str
    model: str
    generation: str
    version: str | None
    work: Work
    card: Card
    tp: int
    load: tuple[float, float, float]
    held: float
    scheduler: Scheduler
    cache_bytes: float
    measured: tuple[tuple[str, float], ...]
    trust: float = 1.0


def predict(values: dict[str, float], case: Case) -> Means:
    """The model's means for one measurement."""
    rates = rates_from(values, case.generation, case.version)
    inputs, outputs, clients = case.load
    resident = resident_requests(case.held, case.scheduler, rates.occupancy)
    loop = Loop(
        inputs, outputs, clients, resident, case.scheduler.tokens, case.cache_bytes, 10, rates.host_s, rates.host_token_s
    )  # fmt: skip
    return closed_loop(lambda step: step_seconds(case.work, case.card, rates, step, case.tp), loop)


def log_errors(values: dict[str, float], case: Case) -> dict[str, float]:
    """ln(predicted / measured) by figure."""
    means = predict(values, case)
    seconds = {"tpot": means.tpot_s, "ttft": means.ttft_s, "request": means.ttft_s + means.tpot_s * (case.load[1] - 1)}
    return {figure: math.log(seconds[figure] / measured) for figure, measured in case.measured}


#: Scale of an unremarkable error by figure; larger ones count linearly.
SCALE = {"tpot": 0.06, "ttft": 0.14, "request": 0.08}


Priors = dict[str, tuple[float, float]]
Values = dict[str, float]


def fit(cases: list[Case], priors: Priors, fixed: Values, start: np.ndarray | None = None) -> Values:
    """The constants that explain the cases best, given the priors."""
    names = list(priors)
    centre = np.log([priors[name][0] for name in names])
    spread = np.array([priors[name][1] for name in names])
    count = Counter(case.model for case in cases)
    weight = {model: min(1.0, math.sqrt(30 / n)) for model, n in count.items()}

    def values_of(x: np.ndarray) -> dict[str, float]:
        return fixed | dict(zip(names, np.exp(x).tolist(), strict=True))

    def residuals(x: np.ndarray) -> np.ndarray:
        values, out = values_of(x), []
        for case in cases:
            for figure, error in log_errors(values, case).items():
                z = error / SCALE[figure]
                out.append(
                    weight[case.model] * case.trust * math.copysign(math.sqrt(2 * (math.sqrt(1 + z * z) - 1)), z)
                )
        return np.concatenate([out, (x - centre) / spread])

    steps = 30 if start is None else 6
    found = least_squares(residuals, centre if start is None else start, diff_step=1e-3, max_nfev=steps)
    return values_of(found.x)


@cache
def describe(model: str, weights: str | None) -> ModelIR:
    """A model with its matrices in a `--weights` format; None: as the checkpoint stores them."""
    ir = open_model(model).ir
    scheme = pass_named(weights) if weights else None
    return scheme.rewrite(ir) if scheme else ir


def weights_name(quant: str | None) -> str | None:
    """The `--weights` name of a source's wording; None where there is no such format here."""
    quant = (quant or "").lower()
    if bits := re.search(r"([\d.]+) ?bpw", quant):
        return f"exl2-{float(bits[1]):g}"
    for start, name in (
        ("gptq-int4", "gptq-4-g128"),
        ("gptq 4-bit", "gptq-4-g128"),
        ("gptq-int8", "gptq-8-g128"),
        ("awq", "awq-4-g128"),
    ):
        if quant.startswith(start):
            return name
    names = {"fp8 w8a8": "fp8", "int8 w8a8": "w8a8", "int4 w4a16 g128": "w4a16-g128"}
    return quant if quant in ("bf16", "fp16", "fp8") else names.get(quant)


ENGINES = {"vLLM": "vllm", "ExLlamaV2": "exllamav2"}


def stream_cases() -> list[Case]:
    """One stream at a time: decode speed, whole requests, or time to first token."""
    cases = []
    for row in rows("speed_refs.jsonl"):
        weights = weights_name(row["quant"]) or ("exl2-4" if row["id"].startswith("tinychat") else None)
        definition = str(row["speed_definition"])
        if (
            row["engine"] not in ENGINES
            or not row["gpu"]
            or not weights
            or row["batch"] not in (1, None)
            or excluded(row)
        ):
            continue
        inputs, outputs = row["input_len"] or 1, row["output_len"] or 128
        measured = []
        if definition.startswith("decode") and row["decode_tok_s"]:
            measured.append(("tpot", 1 / row["decode_tok_s"]))
        if definition.startswith("gen/wall") and row["decode_tok_s"]:
            measured.append(("request", outputs / row["decode_tok_s"]))
        if row["e2e_latency_s"]:
            measured.append(("request", row["e2e_latency_s"]))
        if row["ttft_ms"] and row["engine"] == "ExLlamaV2":
            measured.append(("ttft", row["ttft_ms"] / 1e3))
        if measured:
            cases.append(case(row, ENGINES[row["engine"]], weights, None, (inputs, outputs, 1), tuple(measured)))
    return cases


def serving_cases() -> list[Case]:
    """Closed loops of vLLM; rows that repeat another one to the last figure count once."""
    cases, seen = [], set()
    for row in rows("serving_refs.jsonl"):
        key = tuple(
            row[k]
            for k in ("model", "gpu", "gemm_quant", "tp", "moe_ep", "input_len", "output_len", "concurrency", "tpot_ms")
        )
        if (row["attention_dp"] or 1) != 1 or excluded(row) or key in seen:
            continue
        seen.add(key)
        own = "gpt-oss" in row["model"] or row["gemm_quant"] == "int4_wo"  # these two ship in 4 bit
        version = row["engine_version"] if str(row["engine_version"])[:1] == "0" else None
        trust = (
            0.1 if "235B" in row["model"] else 1.0
        )  # flat over load at three times a step's work: conditions not printed
        load = (row["input_len"], row["output_len"], row["concurrency"])
        measured = (("tpot", row["tpot_ms"] / 1e3), ("ttft", row["ttft_ms"] / 1e3))
        cases.append(case(row, "vllm", None if own else row["gemm_quant"] or "bf16", version, load, measured, trust))
    return cases


def cpu_cases() -> list[Case]:
    """Timings of vLLM-CPU, one request at a time."""
    gpu, cpu = find_gpu("cpu"), find_engine("vllm-cpu")
    return [
        Case(
            f"cpu-{number}", "vllm-cpu", row["model"], "cpu", None, work_of(describe(row["model"], row["weights"])),
            card_of(cpu, gpu), 1,
            (row["input_tokens"], row["output_tokens"], 1), math.inf, cpu.scheduler(gpu, Settings(), Workload(4096)), 2.0,
            (("tpot", row["tpot_ms"] / 1e3), ("ttft", row["ttft_ms"] / 1e3)),
        )
        for number, row in enumerate(rows("cpu_timings.jsonl"))
    ]  # fmt: skip


def case(
    row: dict[str, Any],
    engine: str,
    weights: str | None,
    version: str | None,
    load: Any,
    measured: Any,
    trust: float = 1.0,
) -> Case:
    """A row as a case."""
    gpu, target = find_gpu(GPUS.get(row["gpu"], row["gpu"])), find_engine(engine)
    ir, tp = describe(row["model"], weights), int(row.get("tp") or 1)
    settings = Settings(version=version, parallel=Parallel(tp=tp))
    inputs, outputs, clients = (int(number) for number in load)
    workload = Workload(inputs + outputs, clients, inputs, outputs)
    ir = replace(ir, kv_cache=KVCache("fp8")) if fp8_cache(row) else ir
    held = requests_held(target.memory(ir, gpu, settings, workload).kv, workload)
    return Case(
        row["id"], engine, row["model"], generation_of(gpu), version, work_of(ir), card_of(target, gpu), tp, tuple(map(float, load)),
        held, target.scheduler(gpu, settings, workload), target.cache_bytes(ir), measured, trust,
    )  # fmt: skip


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a data file."""
    return [json.loads(line) for line in (DATA / name).open()]


def report(title: str, cases: list[Case], errors: list[dict[str, float]]) -> dict[str, float]:
    """Prints median errors by model and card; returns the 90 % quantile of each figure's log error."""
    cells = defaultdict(list)
    for c, error in zip(cases, errors, strict=True):
        for figure, value in error.items():
            cells[c.model.split("/")[-1][:24], c.generation, figure].append(value)
            cells["all", "", figure].append(value)
    print(title)
    for (model, generation, figure), values in sorted(cells.items()):
        print(f"  {model:24s} {generation:4s} {figure:8s} n {len(values):3d}  median |error| {np.median(np.abs(np.expm1(values))):.3f}"
              f"  bias {np.expm1(np.median(values)):+.3f}")  # fmt: skip
    return {key[2]: float(np.quantile(np.abs(values), 0.9)) for key, values in cells.items() if key[0] == "all"}


def left_out(cases: list[Case], priors: Any, fixed: Any, best: dict[str, float], group: str) -> list[dict[str, float]]:
    """Errors of each case by a fit that did not see its group (`model` or `generation`)."""
    start = np.log([best[name] for name in priors])
    errors: dict[str, dict[str, float]] = {}
    for name in sorted({getattr(c, group) for c in cases}):
        values = fit([c for c in cases if getattr(c, group) != name], priors, fixed, start)
        errors |= {c.id: log_errors(values, c) for c in cases if getattr(c, group) == name}
    return [errors[c.id] for c in cases]


def main() -> None:
    """Fit, cross-validate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="print errors of the stored fit, change nothing")
    parser.add_argument("--generations", action="store_true", help="also leave out whole generations of cards")
    arguments = parser.parse_args()
    streams, serving = stream_cases(), serving_cases()
    vllm = [c for c in streams if c.engine == "vllm"] + serving
    exllama = [c for c in streams if c.engine == "exllamav2"]
    if arguments.check:
        stored = json.loads(FIT.read_text())["engines"]
        report("vllm", vllm, [log_errors(stored["vllm"]["values"], c) for c in vllm])
        report("exllamav2", exllama, [log_errors(stored["exllamav2"]["values"], c) for c in exllama])
        return
    stored = json.loads(FIT.read_text()) if FIT.exists() else {"engines": {}}
    engines = stored["engines"]
    before = engines.get("vllm", {}).get("values", {})
    start = np.log([before.get(name, VLLM[name][0]) for name in VLLM])
    base = fit(vllm, VLLM, FIXED, start)
    report("vllm, fitted", vllm, [log_errors(base, c) for c in vllm])
    if arguments.generations:
        report("vllm, generations left out", vllm, left_out(vllm, VLLM, FIXED, base, "generation"))
    errors = left_out(vllm, VLLM, FIXED, base, "model")
    report("vllm, models left out", vllm, errors)
    stream = [(c, e) for c, e in zip(vllm, errors, strict=True) if c.load[2] == 1]
    load = [(c, e) for c, e in zip(vllm, errors, strict=True) if c.load[2] > 1 and c.trust == 1.0]
    alone = report("vllm, one stream, models left out", [c for c, _ in stream], [e for _, e in stream])
    loop = report("vllm, load, models left out", [c for c, _ in load], [e for _, e in load])
    engines["vllm"] = entry(base, len(vllm), seen(vllm), alone["tpot"], loop["ttft"], loop["ttft"], loop["tpot"])

    shared = {k: v for k, v in base.items() if "@" not in k and not k.startswith("memory.")} | {"drift": 1.0}
    values = fit(exllama, EXLLAMA, {k: v for k, v in shared.items() if k not in EXLLAMA})
    report("exllamav2, fitted", exllama, [log_errors(values, c) for c in exllama])
    width = report("exllamav2, models left out", exllama, left_out(exllama, EXLLAMA, shared, values, "model"))
    engines["exllamav2"] = entry(
        values, len(exllama), seen(exllama), width["tpot"], width["ttft"], loop["ttft"], 2 * width["tpot"]
    )
    # nobody prints EXL3 speeds: the same engine's author, the same kind of kernel, wider
    wider = {name: round(min(1.8 * error, 0.8), 3) for name, error in engines["exllamav2"]["errors"].items()}
    engines["exllamav3"] = {"as": "exllamav2", "errors": wider, "unknown_generation_widens": 1.6}

    cpu = cpu_cases()
    values = fit(cpu, CPU, {k: v for k, v in shared.items() if k not in CPU} | CPU_KERNELS)
    report("vllm-cpu, fitted", cpu, [log_errors(values, c) for c in cpu])
    # one machine: another one's processor is anybody's guess until it is calibrated
    engines["vllm-cpu"] = entry(values, len(cpu), {}, 0.4, 0.4, 0.45, 0.4)
    stored["made_by"] = "benchmarks/fit_speed.py"
    FIT.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")


#: What the quantile of left-out errors is multiplied by: other sources differ in more than their model.
MARGIN = 1.4


def seen(cases: list[Case]) -> dict[str, dict[str, Any]]:
    """What the rows hold of each generation: up to how many clients, and whether experts are among them."""
    out: dict[str, dict[str, Any]] = {}
    for case in cases:
        known = out.setdefault(case.generation, {"clients": 1, "experts": False})
        known["clients"] = max(known["clients"], round(case.load[2]))
        known["experts"] |= bool(case.work.experts)
    return out


def entry(
    values: Values,
    count: int,
    generations: dict[str, dict[str, Any]],
    decode: float,
    prefill: float,
    ttft: float,
    tpot: float,
) -> dict[str, Any]:
    """An engine's part of the stored fit."""
    errors = {"decode": decode, "prefill": prefill, "ttft": ttft, "tpot": tpot}
    return {
        "values": {k: float(f"{v:.4g}") for k, v in values.items()},
        "errors": {k: float(f"{min(max(MARGIN * v, 0.08), 0.8):.3g}") for k, v in errors.items()},
        "generations": generations,
        "unknown_generation_widens": 1.6,
        "rows": count,
        "error_is": "90 % quantile of |ln(predicted / measured)| of models left out whole, times " + str(MARGIN),
    }


if __name__ == "__main__":
    main()
