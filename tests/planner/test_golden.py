"""The plans of the examples, held against golden files: a change there is a change of what users are told.

`python -m tests.planner.test_golden` writes them anew. They hold what was chosen, each verdict's codes and the bytes; not speed and
loss, which move with every refit and have tests of their own, nor what depends on this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from planner.plan.codec import to_json
from planner.plan.make import plan

_ROOT = Path(__file__).parents[2]
_GOLDEN = Path(__file__).with_name("golden")
_DEMO = _ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
#: name of an example → whether it needs the demo's weights
EXAMPLES = {
    "llama-3.3-70b-rtx4090": False, "qwen2.5-32b-rtx4090": False, "smollm2-cpu": True, "smollm2-exl2": True, "smollm2-narrow": True,
    "smollm2-pruned": True, "olmoe-half-experts": False,
}  # fmt: skip


#: The processor of the plans that are for one.
_PROCESSOR = frozenset({"avx2", "avx512f", "avx512_bf16"})


def lasting(name: str) -> dict[str, Any]:
    """What of an example's plan must not change unnoticed."""
    with patch("targets.gpu.cpu_instructions", return_value=_PROCESSOR):
        document = to_json(plan(_ROOT / "examples" / f"{name}.yaml").document)
    chosen = document["chosen"]
    return {
        "chosen": None if chosen is None else _chosen(chosen),
        "rejected": {one["candidate"]: sorted(reason["code"] for reason in one["reasons"]) for one in document["rejected"]},
        "alternatives": {one["change"]: one["candidate"] for one in document["alternatives"]},
        "illegal": {one["message"]: [one["code"], one["candidates"]] for one in document["illegal"]},
        "searched": document["searched"],
    }  # fmt: skip


def _chosen(chosen: Mapping[str, Any]) -> dict[str, Any]:
    # The budget of a processor is this machine's memory.
    memory = {part: value for part, value in chosen["memory"].items() if part != "budget"}
    return {
        "engine": chosen["engine"], "passes": chosen["passes"], "settings": chosen["settings"], "state": chosen["state"],
        "tensor_bytes": chosen["tensor_bytes"], "memory": memory, "kv_cache": chosen["kv_cache"],
        "goals": {goal["name"]: goal["met"] for goal in chosen["goals"]},
    }  # fmt: skip


def _text(name: str) -> str:
    return json.dumps(lasting(name), indent=1, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("name", EXAMPLES)
def test_plans_of_the_examples_are_the_golden_ones(name: str) -> None:
    if EXAMPLES[name] and not _DEMO.exists():
        pytest.skip("the demo's weights are not here: `make demo` fetches them")
    golden = json.loads((_GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert json.loads(_text(name)) == golden


def _write_golden() -> None:
    _GOLDEN.mkdir(exist_ok=True)
    for name, demo in EXAMPLES.items():
        if not demo or _DEMO.exists():
            (_GOLDEN / f"{name}.json").write_text(_text(name), encoding="utf-8")


if __name__ == "__main__":
    _write_golden()
