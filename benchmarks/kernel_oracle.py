"""Ask the real vLLM which of its kernels multiply integers, over a grid of formats, groups, dtypes, shapes and cards, and keep its answers.

    python -m benchmarks.kernel_oracle ENGINE_PYTHON      writes benchmarks/data/vllm_kernels.jsonl, and compares with our rules

`tests/targets/test_kernel_answers.py` holds the rules against what is kept, `tests/engine/test_kernel_oracle.py` what is kept against the
engine. One line a question; `takers`: the kernels that take each of `SHAPES`, in vLLM's order.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from passes.formats.compressed_tensors.integers import PackQuantized
from targets.engines.vllm.rules.kernels import Product, takers
from targets.engines.vllm.rules.versions import parse_version

DATA = Path(__file__).with_name("data") / "vllm_kernels.jsonl"
PROGRAM = Path(__file__).with_name("engine_kernels.py")
#: The engine whose answers are kept.
VERSION = "0.32.0"
#: Outputs and inputs of a rank: whole tiles; no multiple of 8, of 128; Marlin's old limits missed.
SHAPES = ((4096, 4096), (4100, 4096), (1416, 4096), (8192, 14848), (576, 2816))
#: The classes by the names of the rules.
NAMES = {
    "CutlassW4A8LinearKernel": "CutlassW4A8", "MacheteLinearKernel": "Machete", "MarlinLinearKernel": "Marlin",
    "ExllamaLinearKernel": "ExLlama", "TritonW4A16LinearKernel": "TritonW4A16", "HummingLinearKernel": "Humming",
}  # fmt: skip


def questions() -> list[dict[str, Any]]:
    """The grid: each question with all shapes."""
    return list(_questions())


def _questions() -> Iterator[dict[str, Any]]:
    groups = (-1, 16, 32, 64, 128, 256)
    weights_only = itertools.product((75, 80, 86, 89, 90, 100, 120), (4, 8), (False, True), ("",), groups)
    # The scheme lets nothing else through to the kernels (`compressed_tensors_w4a8_fp8.py`).
    four_eight = ((90, 4, False, "fp8", 128),)
    for capability, bits, zeros, inputs, group in (*weights_only, *four_eight):
        for dtype in ("BF16", "F16"):
            yield {
                "capability": capability, "bits": bits, "zero_points": zeros, "group_size": group, "dtype": dtype, "inputs": inputs,
                "shapes": SHAPES,
            }  # fmt: skip


def real_answers(engine_python: Path) -> list[list[list[str]]]:
    """What the engine's own kernels say to each question."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "questions.json"
        file.write_text(json.dumps(questions()), encoding="utf-8")
        done = subprocess.run([engine_python, PROGRAM, file], capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout.splitlines()[-1])
    return [[[NAMES[name] for name in shape] for shape in answer] for answer in answers]


def our_answers(question: Mapping[str, Any]) -> list[list[str]]:
    """What our rules say to a question."""
    form = PackQuantized(
        question["bits"], question["group_size"], not question["zero_points"], inputs=question["inputs"]
    )
    version = parse_version(VERSION)
    return [
        takers(Product(form, rows, inputs, False, question["capability"], version, question["dtype"]))
        for rows, inputs in SHAPES
    ]


def kept() -> list[dict[str, Any]]:
    """The questions and answers that are kept."""
    return [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    answers = real_answers(Path(sys.argv[1]))
    rows = [
        {**{key: value for key, value in question.items() if key != "shapes"}, "takers": answer}
        for question, answer in zip(questions(), answers, strict=True)
    ]
    DATA.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    odd = [row for row in rows if our_answers(row) != row["takers"]]
    for row in odd:
        print(row, our_answers(row))
    print(f"{len(rows)} questions of {len(SHAPES)} shapes, {len(odd)} answered otherwise by the rules")


if __name__ == "__main__":
    main()
