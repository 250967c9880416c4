"""Ask the real vLLM which of its kernels multiply what is rounded, over a grid of formats, groups, dtypes, shapes and cards, and keep its answers.

    python -m benchmarks.kernel_oracle ENGINE_PYTHON      writes the files below, and compares with our rules

`vllm_kernels.jsonl`: integers that are unpacked; `takers`: the kernels that take each of `SHAPES`, in vLLM's order.
`vllm_scaled_kernels.jsonl`: inputs rounded, too; `takers`: the kernels that a card has for a family.
`vllm_expert_kernels.jsonl`: experts in blocks of 4 bits; `takers`: the first `kernel` of a card, `padded`: what it makes of `SIDES`.
One line a question.
`tests/targets/test_kernel_answers.py` holds the rules against what is kept, `tests/engine/test_kernel_oracle.py` what is kept against the
engine.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.format import Format
from passes.formats.fp4 import Nvfp4
from targets.engines.vllm.defaults import rules_of
from targets.engines.vllm.kernels import kernel_of
from targets.engines.vllm.rules.kernels import Product, takers
from targets.engines.vllm.rules.methods import method_reasons
from targets.engines.vllm.rules.versions import parse_version, rules_for

DATA = Path(__file__).with_name("data") / "vllm_kernels.jsonl"
SCALED = DATA.with_name("vllm_scaled_kernels.jsonl")
EXPERTS = DATA.with_name("vllm_expert_kernels.jsonl")
PROGRAM = Path(__file__).with_name("engine_kernels.py")
#: The engine whose answers are kept.
VERSION = "0.32.0"
#: Outputs and inputs of a rank: whole tiles; no multiple of 8, of 128; Marlin's old limits missed.
SHAPES = ((4096, 4096), (4100, 4096), (1416, 4096), (8192, 14848), (576, 2816))
#: Hidden and intermediate side of gpt-oss's experts on one rank, two, four and eight.
SIDES = ((2880, 2880), (2880, 1440), (2880, 720), (2880, 360))
#: The classes by the names of the rules.
NAMES = {
    "CutlassW4A8LinearKernel": "CutlassW4A8", "MacheteLinearKernel": "Machete", "MarlinLinearKernel": "Marlin",
    "ExllamaLinearKernel": "ExLlama", "TritonW4A16LinearKernel": "TritonW4A16", "HummingLinearKernel": "Humming",
}  # fmt: skip


CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
#: Formats whose inputs are rounded too, by vLLM's names of their kernels' tables.
FAMILIES: Mapping[str, Format] = {
    "int8": IntQuantized(), "fp8": FloatQuantized(-1), "fp8_block": FloatQuantized(block=(128, 128)), "nvfp4": Nvfp4(),
}  # fmt: skip
#: Kernels that multiply in 16 bits whatever the inputs might be.
_WEIGHT_ONLY = ("Marlin", "Humming", "Emulation")
#: What takes every card and stops beyond this capability × 10 in its compiled part (`rules/methods.py`).
_STOPS = {"CutlassInt8ScaledMMLinearKernel": 90}


def questions() -> list[dict[str, Any]]:
    """The grid of unpacked integers: each question with all shapes."""
    return list(_questions())


def _questions() -> Iterator[dict[str, Any]]:
    groups = (-1, 16, 32, 64, 128, 256)
    weights_only = itertools.product(CAPABILITIES, (4, 8), (False, True), ("",), groups)
    # The scheme lets nothing else through to the kernels (`compressed_tensors_w4a8_fp8.py`).
    four_eight = ((90, 4, False, "fp8", 128),)
    for capability, bits, zeros, inputs, group in (*weights_only, *four_eight):
        for dtype in ("BF16", "F16"):
            yield {
                "capability": capability, "bits": bits, "zero_points": zeros, "group_size": group, "dtype": dtype, "inputs": inputs,
                "shapes": SHAPES,
            }  # fmt: skip


def scaled_questions() -> list[dict[str, Any]]:
    """The grid of rounded inputs."""
    return [{"capability": capability, "family": family} for capability in (*CAPABILITIES, 121) for family in FAMILIES]


def expert_questions() -> list[dict[str, Any]]:
    """The grid of experts in blocks: every card."""
    return [{"capability": capability, "experts": SIDES} for capability in (*CAPABILITIES, 103, 121)]


def _asked(engine_python: Path, asked: Sequence[Mapping[str, Any]]) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "questions.json"
        file.write_text(json.dumps(asked), encoding="utf-8")
        done = subprocess.run([engine_python, PROGRAM, file], capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def real_answers(engine_python: Path) -> list[list[list[str]]]:
    """What the engine's own kernels say to each question about integers."""
    return [[[NAMES[name] for name in shape] for shape in answer] for answer in _asked(engine_python, questions())]


def real_scaled_answers(engine_python: Path) -> list[list[str]]:
    """What they say to each question about rounded inputs."""
    return _asked(engine_python, scaled_questions())


def real_expert_answers(engine_python: Path) -> list[dict[str, Any]]:
    """What they say to each question about experts."""
    return _asked(engine_python, expert_questions())


def our_padding(question: Mapping[str, Any]) -> list[list[int]]:
    """To which sides our rules pad experts in blocks on a card."""
    multiples = rules_of(VERSION, question["capability"])[0].expert_padding
    return [
        [math.ceil(side / multiple) * multiple for side, multiple in zip(pair, multiples, strict=True)]
        for pair in SIDES
    ]


def our_answers(question: Mapping[str, Any]) -> list[list[str]]:
    """What our rules say to a question about integers."""
    form = PackQuantized(
        question["bits"], question["group_size"], not question["zero_points"], inputs=question["inputs"]
    )
    version = parse_version(VERSION)
    return [
        takers(Product(form, rows, inputs, False, question["capability"], version, question["dtype"]))
        for rows, inputs in SHAPES
    ]


def our_arithmetic(question: Mapping[str, Any]) -> str:
    """In which arithmetic our rules multiply a family on a card: `rounded` inputs, `16 bits`, or `none`."""
    form, capability = FAMILIES[question["family"]], question["capability"]
    if any(method_reasons(form, None, capability, "BF16", rules_for(VERSION)[0])):
        return "none"
    return "16 bits" if kernel_of(form, capability / 10).arithmetic == "bf16" else "rounded"


def real_arithmetic(row: Mapping[str, Any]) -> str:
    """In which arithmetic the first kernel of an answer does."""
    first = next(iter(row["takers"]), None)
    if first is None or row["capability"] > _STOPS.get(first, row["capability"]):
        return "none"
    return "16 bits" if first.startswith(_WEIGHT_ONLY) else "rounded"


def kept(file: Path = DATA) -> list[dict[str, Any]]:
    """The questions and answers that are kept."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _keep(file: Path, asked: Sequence[Mapping[str, Any]], answers: Sequence[Any]) -> list[dict[str, Any]]:
    rows = [
        {**{key: value for key, value in question.items() if key not in ("shapes", "experts")}, "takers": answer}
        for question, answer in zip(asked, answers, strict=True)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def main() -> None:
    engine = Path(sys.argv[1])
    rows = _keep(DATA, questions(), real_answers(engine))
    scaled = _keep(SCALED, scaled_questions(), real_scaled_answers(engine))
    experts = _keep(EXPERTS, expert_questions(), real_expert_answers(engine))
    odd = [(row, our_answers(row)) for row in rows if our_answers(row) != row["takers"]]
    odd_scaled = [(row, our_arithmetic(row)) for row in scaled if our_arithmetic(row) != real_arithmetic(row)]
    odd_experts = [(row, our_padding(row)) for row in experts if our_padding(row) != row["takers"]["padded"]]
    for row, ours in (*odd, *odd_scaled, *odd_experts):
        print(row, ours)
    print(f"{len(rows)} questions of {len(SHAPES)} shapes, {len(odd)} answered otherwise by the rules")
    print(f"{len(scaled)} questions of rounded inputs, {len(odd_scaled)} answered otherwise by the rules")
    print(f"{len(experts)} cards with experts in blocks, {len(odd_experts)} answered otherwise by the rules")


if __name__ == "__main__":
    main()
