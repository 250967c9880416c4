"""What editors say of a spec by its JSON Schema: nothing against what `init`, the examples and people write; something against typos."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from passes.errors import InputError
from planner.setup.wizard import USES, Answers, spec_text
from planner.spec.parse import parse_spec
from planner.spec.schema import schema
from tests.conftest import missing

ROOT = Path(__file__).parents[2]
_BACKENDS = Path(os.environ.get("TIGHTFIT_BACKENDS") or Path.home() / ".cache" / "tightfit" / "backends").expanduser()
#: Reads {"schema", "specs"}; prints what is against each spec.
_VALIDATE = """
import json, sys
import jsonschema
given = json.load(sys.stdin)
kind = jsonschema.validators.validator_for(given["schema"])
kind.check_schema(given["schema"])
json.dump([[error.message for error in kind(given["schema"]).iter_errors(spec)] for spec in given["specs"]], sys.stdout)
"""
_TYPED = """
model: Qwen2.5-7B-Instruct
target: { gpu: 4090, count: auto, reserve: 0.5 GiB }
workload: { context: 32k, rate: 4/s, input_tokens: { mean: 1k, p95: 2k }, output_tokens: 400 }
goals: { ttft: { p95: 2 s }, decode: 20 tok/s, quality: { max_perplexity_increase: 5% }, confidence: 90% }
passes: { quantize: { methods: gptq, formats: int4 }, kv_cache: fp8, prune: no }
"""
_BARE = "model: x\ntarget: { gpu: L4 }\npasses: { quantize: [awq, w4a16-g64], distill: yes }\n"
_WRONG = (
    "model: x\ntarget: { gpu: L4, cuont: 2 }\n", "target: { gpu: L4 }\n", "model: x\ntarget: { gpu: L4 }\ngoals: { prefer: best }\n",
    "model: x\ntarget: { gpu: L4 }\nworkload: { concurrency: -1 }\n",
)  # fmt: skip


def test_editors_accept_what_is_planned_and_mark_what_is_not() -> None:
    python = _BACKENDS / "launch" / "bin" / "python"
    if not python.exists():
        missing("jsonschema is not here", "make backends")
    examples = [path.read_text() for path in sorted((ROOT / "examples").glob("*.yaml"))]
    written = [spec_text(Answers("Qwen2.5-7B-Instruct", "L4", use)) for use in USES]
    right = [*examples, *written, _TYPED, _BARE]
    for text in right:
        parse_spec(text)
    given = {"schema": schema(), "specs": [yaml.safe_load(text) for text in (*right, *_WRONG)]}
    done = subprocess.run(
        [python, "-c", _VALIDATE], input=json.dumps(given), capture_output=True, text=True, check=True
    )
    against = json.loads(done.stdout)
    assert against[: len(right)] == [[]] * len(right)
    assert all(against[len(right) :])


@pytest.mark.parametrize("text", _WRONG)
def test_what_editors_mark_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_spec(text)
