"""What AIConfigurator says of serving questions, by its formula and by the event simulator that its tables drive: for `benchmarks.serving_peer`.

Runs in the Python that has `aiconfigurator==0.12.0` and, for the simulator, `ai-dynamo==1.5.1 ai-dynamo-runtime==1.5.1` (all Apache-2.0). Reads a
JSON list of questions from the file named first, writes as long a list of answers to the other: of each `formula` and `simulator`, `{tpot_ms, ttft_ms,
ttft_p50_ms, tok_s, seconds}` or `{error}`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiconfigurator.cli.api import cli_estimate
from dynamo.mocker import MockEngineArgs
from dynamo.replay.api import run_synthetic_trace_replay


def formula(asked: dict[str, Any]) -> dict[str, float]:
    """Ask for as many requests as run at once, in the steady state: its formula has no other load."""
    told = cli_estimate(
        asked["model"], asked["system"], backend_name="vllm", isl=asked["isl"], osl=asked["osl"], batch_size=asked["clients"], tp_size=asked["tp"],
        pp_size=asked["pp"], moe_tp_size=asked["tp"] // asked["ep"], moe_ep_size=asked["ep"], gemm_quant_mode=asked["gemm"], moe_quant_mode=asked["moe"],
    )  # fmt: skip
    return {"tpot_ms": float(told.tpot), "ttft_ms": float(told.ttft), "tok_s": float(told.tokens_per_second)}


def simulator(asked: dict[str, Any]) -> dict[str, float]:
    """Let its simulator serve the same requests, with the cache that is asked (it counts none itself)."""
    engine = MockEngineArgs.from_json(json.dumps({
        "engine_type": "vllm", "aic_backend": "vllm", "aic_system": asked["system"], "aic_model_path": asked["model"], "aic_tp_size": asked["tp"],
        "aic_moe_tp_size": asked["tp"] // asked["ep"], "aic_moe_ep_size": asked["ep"], "aic_gemm_dtype": asked["gemm"], "aic_moe_dtype": asked["moe"],
        "num_gpu_blocks": asked["blocks"], "block_size": 16, "max_num_seqs": asked["sequences"], "max_num_batched_tokens": asked["tokens"],
    }))  # fmt: skip
    told = run_synthetic_trace_replay(
        asked["isl"], asked["osl"], asked["requests"], extra_engine_args=engine, replay_concurrency=asked["clients"]
    ).summary
    names = {
        "tpot_ms": "mean_tpot_ms",
        "ttft_ms": "mean_ttft_ms",
        "ttft_p50_ms": "median_ttft_ms",
        "tok_s": "output_throughput_tok_s",
    }
    return {ours: float(told[its]) for ours, its in names.items()}


def answered(ask: Callable[[dict[str, Any]], dict[str, float]], asked: dict[str, Any]) -> dict[str, Any]:
    """An answer with its seconds, or what it raises: then it does not answer."""
    began = time.perf_counter()
    try:
        return {**ask(asked), "seconds": time.perf_counter() - began}
    except Exception as error:  # noqa: BLE001
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def main() -> None:
    """Answer all questions of a file."""
    asked, told = map(Path, sys.argv[1:3])
    questions = json.loads(asked.read_text())
    told.write_text(
        json.dumps([{ask.__name__: answered(ask, each) for ask in (formula, simulator)} for each in questions])
    )


if __name__ == "__main__":
    main()
