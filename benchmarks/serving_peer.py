"""Times between tokens, to the first one, and throughput: this project and AIConfigurator 0.12 (its formula and its simulator), on the same rows.

    python -m benchmarks.serving_peer [--peer PYTHON] [--table 24] [--keep]

PEER: the Python of an environment with `aiconfigurator==0.12.0`, `ai-dynamo==1.5.1` and `ai-dynamo-runtime==1.5.1`. Rows: closed loops and bursts of
`benchmarks/data/serving_refs.jsonl` from publications, on cards and models that it has, or (`--table`) as many drawn of the table that its own package holds. Both get each row's requests and lengths; its simulator counts no
cache, so that it gets ours. What each has seen: our constants were fitted on these rows among others (docs/accuracy-speed.md: errors of sources that were
left out), its tables are measured on such cards.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import measured
from benchmarks.fit_speed import asked_of, load_of, rows, setting_of
from passes.errors import InputError

PEER = Path.home() / ".cache/tightfit/backends/aiconfigurator/bin/python"

#: Cards that its tables have for vLLM, by our rows' names.
SYSTEMS = {
    name: name for name in ("h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "a100_sxm", "l40s", "l4", "h100_pcie")
}
SYSTEMS["rtx_pro_6000"] = "rtx_pro_6000_server"
#: Its names of models that have a row's shapes.
MODELS = {
    "QuantTrio/Qwen3-Coder-480B-A35B-Instruct-AWQ": "Qwen/Qwen3-Coder-480B-A35B-Instruct",
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8": "Qwen/Qwen3-235B-A22B-FP8",
    "deepseek-ai/DeepSeek-R1-0528": "deepseek-ai/DeepSeek-R1",
}
#: How it names what our rows say of storage.
MODES = {"awq": "int4_wo", "bf16": "bfloat16", "fp8": "fp8", "nvfp4": "nvfp4"}

Answer = dict[str, Any]


def ours(row: dict[str, Any]) -> tuple[Answer, dict[str, Any]] | None:
    """What this project says of a row, and the question to the peer; None where no such question can be asked."""
    if row["arrival"] == "rate" or row["gpu"] not in SYSTEMS or row.get("spec_decode"):
        return None
    if not (row["input_len"] and row["output_len"] and row["tpot_ms"]):
        return None
    began = time.perf_counter()
    try:
        shaped, weights, version, replicas, clients = asked_of(row)
        load = (row["input_len"], row["output_len"], clients)
        target, gpu, settings, workload, ir = setting_of(shaped, "vllm", weights, version, load)
    except InputError:
        return None
    requests = load_of(row, clients, None)[0]
    burst = row["arrival"] == "burst"
    workload = replace(
        workload,
        requests=requests if row.get("collected") else None,
        rate=math.inf if burst else None,
        concurrency=None if burst else clients,
    )
    memory = target.memory(ir, gpu, settings, workload)
    told = target.served(ir, gpu, settings, workload, memory)
    scheduler = target.scheduler(gpu, settings, workload)
    answer = {
        "tpot_ms": told.tpot_ms.value, "ttft_ms": told.ttft_ms.value, "tok_s": replicas * told.throughput_tok_s.value,
        "ttft_p50_ms": told.ttft_p50_ms.value if told.ttft_p50_ms else None, "seconds": time.perf_counter() - began,
    }  # fmt: skip
    mode = MODES.get(row["gemm_quant"] or "")
    question = {
        "model": MODELS.get(row["model"], shaped["model"]), "system": SYSTEMS[row["gpu"]], "isl": int(row["input_len"]), "osl": int(row["output_len"]),
        "clients": min(clients, requests), "requests": requests, "tp": settings.parallel.tp, "pp": settings.parallel.pp,
        "ep": settings.parallel.ep, "gemm": mode, "moe": mode, "blocks": max(int(memory.kv.tokens.value) // 16, 1),
        "sequences": int(scheduler.sequences), "tokens": int(scheduler.tokens), "replicas": replicas,
    }  # fmt: skip
    return answer, question


def errors(row: dict[str, Any], told: Answer, replicas: int = 1) -> dict[str, float]:
    """Relative errors, of what the row tells; of first tokens by the median where both tell it."""
    by_median = row.get("ttft_median_ms") and told.get("ttft_p50_ms")
    first = ("ttft_p50_ms", row["ttft_median_ms"]) if by_median else ("ttft_ms", row["ttft_ms"])
    said = {
        "TPOT": (told["tpot_ms"], row["tpot_ms"]), "TTFT": (told[first[0]], first[1]), "tok/s": (replicas * told["tok_s"], row.get("out_tok_s")),
    }  # fmt: skip
    return {figure: abs(ours / theirs - 1) for figure, (ours, theirs) in said.items() if theirs}


def main() -> None:
    """Print median errors of all three, on rows that each of them answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", type=Path, default=PEER)
    parser.add_argument("--table", type=int, default=0, help="rows of the package's own table instead, so many")
    parser.add_argument("--keep", action="store_true", help="keep the figures for the page")
    options = parser.parse_args()
    load_before, told_of = os.getloadavg()[0], []
    chosen = [row for row in rows("serving_refs.jsonl") if bool(row.get("collected")) != bool(options.table)]
    if options.table:
        chosen = random.Random(0).sample(chosen, options.table)
    asked = [(row, *both) for row in chosen if (both := ours(row))]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("asked.json", "told.json")]
        files[0].write_text(json.dumps([question for _, _, question in asked]))
        script = Path(__file__).with_name("peer_aiconfigurator.py")
        subprocess.run([str(options.peer), str(script), *map(str, files)], check=True, capture_output=True)
        told = json.loads(files[1].read_text())
    kept = [
        (row, {"tightfit": (own, 1), "AIConfigurator": (its["formula"], question["replicas"]), "its simulator": (its["simulator"], question["replicas"])})
        for (row, own, question), its in zip(asked, told, strict=True)
        if "error" not in its["formula"] and "error" not in its["simulator"]
    ]  # fmt: skip
    print(f"{len(asked)} rows asked, {len(kept)} answered by all")
    for kind in ("closed", "burst"):
        of_kind = [(row, answers) for row, answers in kept if row["arrival"] == kind]
        for name in ("tightfit", "AIConfigurator", "its simulator") if of_kind else ():
            found = [errors(row, *answers[name]) for row, answers in of_kind]
            named = {figure: [each[figure] for each in found if figure in each] for figure in ("TPOT", "TTFT", "tok/s")}
            figures = ", ".join(f"{figure} {median(each):.1%}" for figure, each in named.items() if each)
            seconds = median(answers[name][0]["seconds"] for _, answers in of_kind)
            middle = {figure: median(each) for figure, each in named.items() if each}
            told_of.append({"kind": kind, "n": len(of_kind), "by": name, **middle, "seconds": seconds})
            print(f"{kind:7} n {len(of_kind):3} {name:15} {figures}; {seconds:.2f} s an answer")
    if options.keep and not options.table:
        measured.write("serving-peer", "python -m benchmarks.serving_peer --keep", told_of, load_before)


if __name__ == "__main__":
    main()
