"""docs/cards.md follows from the files of a run, every figure beside the machine it is from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.on_card.page import goals, page, runs_of
from passes.errors import InputError

_WALK = {"seconds": [2.0, 1.2, 1.2, 1.3], "first_s": 2.0, "block_s": 1.2}
MACHINE = {
    "card": "NVIDIA H100 80GB HBM3", "driver": "580.1", "processor": "Xeon", "cores": 16, "memory_bytes": 128 << 30, "code": "abc1234",
    "versions": {"torch": "2.11.0", "vllm": "0.26.0"},
}  # fmt: skip


def document(machine: dict[str, Any] = MACHINE, **stages: dict[str, Any]) -> dict[str, Any]:
    """A combined file; a stage that ends otherwise than well says so under `status` and `reason`."""
    records = {
        name: {
            "stage": name, "status": found.pop("status", "ok"), "reason": found.pop("reason", ""), "seconds": 1.0,
            "began": "2026-11-28T01:00:00", "shape": found.pop("shape", "8b"), "found": found,
        }
        for name, found in {"machine": dict(machine), **stages}.items()
    }  # fmt: skip
    return {"format_version": "1", "stages": records}


def served(form: str, tokens: int, *, inside: bool) -> dict[str, Any]:
    load = {
        "concurrency": 8, "ttft_ms": 100.4, "tpot_ms": 7.25, "tok_s": 1000.0, "predicted_ttft_ms": [90.0, 80.0, 120.0],
        "predicted_tpot_ms": [7.0, 6.0, 8.0], "predicted_tok_s": [1100.0, 900.0, 1300.0],
    }  # fmt: skip
    return {
        "form": form, "fp8_cache": False, "start_s": 60.2, "kv_tokens": tokens, "predicted_kv": [460_000, 450_000, 465_000],
        "kv_error": 460_000 / tokens - 1, "kv_inside": inside, "loads": [load],
    }  # fmt: skip


def everything() -> dict[str, Any]:
    gptq = {
        "walk": _WALK,
        "card_peak_gib": 9.5,
        "host_peak_gib": 4.0,
        "predicted": {"walk_block_s": 1.1},
        "walk_s": 6.0,
    }
    return document(
        calibrate={"calibrated": {"bf16_flops": 7e14}, "plain": {"bf16_flops": 8e14}, "ratios": {"bf16_flops": 0.875}, "seconds": 22.0},
        apply_gptq=gptq,
        apply_exl2=gptq | {"walk": _WALK | {"block_s": 3.0}, "measure": _WALK | {"block_s": 8.0}},
        peer_llmcompressor={
            "version": "0.14.0.1", "walk": _WALK | {"block_s": 4.0}, "whole_s": 30.0, "card_peak_gib": 8.0,
            "ours_block_s": 1.2, "ratio": 0.3,
        },
        smollm2_text={"tokens": 16384, "tok_s": 12_000.0, "writing_tok_s": 15_000.0, "how": "CUDA graph"},
        exllama={"matrices": 211, "equal_matrices": 211, "furthest": 0.0, "kl": 1e-5, "top1": 0.998, "tok_s": {"FP16": 300.0, "Q4": 280.0}},
        vllm_bf16=served("bf16", 462_944, inside=True),
        vllm_awq={"form": "awq", "status": "failed", "reason": "EngineError: it did not start"},
    )  # fmt: skip


def test_every_figure_stands_on_the_page_beside_its_machine() -> None:
    text = page(runs_of({"data/2026-11-28-h100.json": everything()}))
    for line in (
        "| A | bf16, TFLOP/s | 700.0 | 800.0 | 0.88 |",
        "| A | GPTQ W4A16 g128 | 1.20 | 2.00 | 6.0 | 1.10 | 1.00 | 9.5 | 4.0 |",
        "| A | llmcompressor 0.14.0.1 | 4.00 | 2.00 | 30 | 8.0 | 1.20 | 0.30 |",
        "| A | its own text, 16,384 tokens | 12,000 tokens/s, 15,000 without loading (CUDA graph) |",
        "| A | tokens/s of one sequence, cache Q4 | 280 |",
        "| A | bf16 | bf16 | 60 | 462,944 | 460,000 (450,000 … 465,000) | -0.64% | yes |",
        "| A | bf16 | bf16 | 8 | 100 | 90 (80 … 120) | 7.2 | 7.0 (6.0 … 8.0) | 1,000 | 1,100 (900 … 1,300) |",
        "| A | vllm_awq | failed | EngineError: it did not start |",
    ):
        assert line in text
    assert (
        "NVIDIA H100 80GB HBM3" in text and "580.1" in text and "`2026-11-28-h100.json`" in text and "not there" in text
    )


def test_goals_are_judged_by_what_was_measured() -> None:
    [run] = runs_of({"one": everything()})
    judged = {row[1]: (row[2], row[3]) for row in goals(run)}
    assert judged["W4A16 g128 by GPTQ, 8B shape: ≤ 1.5 s a block"] == ("1.20 s", "yes")
    assert judged["EXL2, about 4 bits: ≤ 2 × GPTQ"] == ("2.50 ×", "**no**")
    assert judged["≤ 0.5 × llmcompressor 0.14.0.1"] == ("0.30 ×", "yes")
    assert judged["calibrate within 10 % of plain torch"] == ("furthest 0.88 ×", "**no**")
    assert judged["every format starts in vLLM"] == ("1 of 2", "**no**")
    assert not any("AWQ" in goal for goal in judged)


def test_parts_of_one_machine_are_one_run_and_the_stage_that_ended_counts() -> None:
    first = document(apply_gptq={"status": "timeout", "reason": "ended at its limit of 118 s"})
    second = document(apply_gptq={"walk": _WALK})
    other = document(MACHINE | {"card": "NVIDIA H200"}, apply_gptq={"walk": _WALK})
    runs = runs_of({"1": first, "2": second, "3": other})
    assert [(run.letter, run.files) for run in runs] == [("A", ("1", "2")), ("B", ("3",))]
    assert runs[0].stages["apply_gptq"]["status"] == "ok"
    assert page(runs) == page(runs_of({"1": second, "2": first, "3": other}))


def test_what_tiny_models_showed_is_refused() -> None:
    with pytest.raises(InputError, match="'tiny'"):
        runs_of({"one": document(apply_gptq={"walk": _WALK, "shape": "tiny"})})


def test_the_page_is_the_one_that_the_kept_files_make() -> None:
    root = Path(__file__).parents[2]
    files = sorted((root / "benchmarks" / "data" / "on_card").glob("*.json"))
    kept = root / "docs" / "cards.md"
    if files:
        assert kept.read_text("utf-8") == page(
            runs_of({str(file): json.loads(file.read_text("utf-8")) for file in files})
        )
    else:
        assert not kept.exists()
