"""The rows of `data/vllm_memory_logs.jsonl` as questions to the estimator: same arguments as the start-up had, nothing it printed.

Run as a script with the collection's own file to make `data/vllm_memory_logs.jsonl` again (notes and quotes left out):

    python -m benchmarks.memory_rows SOURCE.jsonl
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from planner.asked import chain_of, rewrite, with_dtype
from targets.engines.engine import Parallel, Settings
from targets.gpu import Gpu, find_gpu
from targets.workload import Workload

ROWS = Path(__file__).parent / "data" / "vllm_memory_logs.jsonl"


@dataclass(frozen=True)
class Question:
    """One start-up: what was started (`ir`, `gpu`, `settings`, `workload`) and what it printed (`row`)."""

    row: dict[str, Any]
    ir: ModelIR
    gpu: Gpu
    settings: Settings
    workload: Workload

    @property
    def tokens(self) -> int | None:
        """KV tokens that the start-up printed, or its blocks times their size."""
        row = self.row
        return row["kv_cache_tokens"] or (row["gpu_blocks"] or 0) * (row["block_size"] or 16) or None

    @property
    def source(self) -> str:
        """The publication the row comes from: rows of one source share habits, so they are held out together."""
        return str(self.row["source_url"]).split("/blob/")[0].split("#")[0]


def load_rows() -> list[dict[str, Any]]:
    """Every row that names a card the catalog may know."""
    return [row for row in map(json.loads, ROWS.read_text(encoding="utf-8").splitlines()) if row["gpu_arg"]]


def ask(row: dict[str, Any]) -> Question:
    """The question of a row. Raises TightfitError for a model or card that is not known."""
    version = re.match(r"\d+\.\d+(\.\d+)?", row["vllm_version"] or "")
    clean = version is not None and "+" not in row["vllm_version"]
    tp, pp = row["tp"], row["pp"]
    settings = Settings(
        version=version[0] if version is not None and clean else None,
        parallel=Parallel(tp=tp or (row["n_gpus"] or 1) // (pp or 1) or 1, pp=pp or 1),
        gpu_memory_utilization=row["gpu_memory_utilization"],
        max_num_seqs=row["max_num_seqs"],
        max_num_batched_tokens=row["max_num_batched_tokens"],
        enforce_eager=bool(row["enforce_eager"]),
    )
    dense = open_model(row["model"]).ir
    dtype = row["dtype"] if row["dtype"] not in (None, "auto") else None
    kv = row["kv_cache_dtype"] or "auto"
    ir, _ = rewrite(with_dtype(dense, row["weights_arg"], dtype), chain_of(row["weights_arg"], kv))
    return Question(row, ir, find_gpu(row["gpu_arg"]), settings, Workload(row["max_model_len"] or dense.max_context))


def copy(source: Path) -> None:
    """Write the repository's copy of the table."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    kept = [{k: v for k, v in row.items() if k not in ("notes", "quotes")} for row in rows]
    ROWS.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")


if __name__ == "__main__":
    copy(Path(sys.argv[1]))
