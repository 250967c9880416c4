"""Documents are read back as they were written, to the digit; what is no document is refused with the key that is wrong."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from passes.errors import InputError
from planner.certificate import Certificate
from planner.check import CheckDocument, check
from planner.plan.codec import from_json, to_json
from planner.plan.document import PlanDocument, digest, spec_of
from planner.plan.make import plan
from planner.spec.parse import parse_spec
from targets.engines.engine import Parallel, Settings
from targets.quantity import Basis, Quantity

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_MODEL = "model: Qwen/Qwen2.5-7B-Instruct\n"
SPECS = {
    "every goal": _MODEL + "target: { gpu: rtx-3060-12gb, count: 2 }\nworkload: { context: 8192, concurrency: 3 }\n"
    "goals: { ttft: 900 ms, tpot: 60 ms, decode: 10 tok/s, throughput: 20 tok/s,"
    " quality: { max_kl: 0.1, max_perplexity_increase: 10% } }\n",
    "nothing": _MODEL + "target: { gpu: rtx-4090 }\ngoals: { decode: 100000 tok/s }\n",
    "pruned, a card by its facts": _MODEL + "target: { gpu: { memory_gib: 30.5, bandwidth_gb_s: 500, compute_capability: 9.0 } }\n"
    "passes: { prune: { depth: 2, sparse: { method: wanda } }, distill: { tokens: 1000000 } }\n",
    "a listed card with another memory": _MODEL + "target: { gpu: { name: RTX 4090, memory_gib: 23.99 } }\n",
    "settings": "model: deepseek-ai/DeepSeek-V3\ntarget: { gpu: H100, count: 16, reserve: 0.5 GiB }\n"
    "engine: { name: vllm, version: '0.31', settings: { max_num_seqs: 16, enforce_eager: true } }\n",
}  # fmt: skip


def _text(document: object) -> str:
    return json.dumps(to_json(document))


@pytest.mark.parametrize("spec", [*SPECS, "llama-3.3-70b-rtx4090", "qwen2.5-32b-rtx4090"])
def test_a_plan_is_read_back_as_it_was_written(spec: str) -> None:
    document = plan(parse_spec(SPECS[spec]) if spec in SPECS else _EXAMPLES / f"{spec}.yaml").document
    read = from_json(PlanDocument, json.loads(_text(document)), "the plan")
    assert read == document and spec_of(read).target == spec_of(document).target
    assert _text(read) == _text(document)
    assert digest(to_json(read)) == document.digest == read.digest


@pytest.mark.parametrize("gpu", ["RTX 4090", "T4"])
def test_an_answer_of_check_is_read_back_as_it_was_written(gpu: str) -> None:
    spread = Settings(parallel=Parallel(tp=2, pp=2))
    for chosen in (Settings(), spread):
        document = check("Llama-3.1-8B-Instruct", gpu, settings=chosen, concurrency=2).document
        read = from_json(CheckDocument, json.loads(_text(document)), "the answer")
        assert read == document and _text(read) == _text(document)


def _quantities() -> st.SearchStrategy[Quantity]:
    ends = st.floats(allow_nan=False) | st.integers(-(2**60), 2**60)
    return st.builds(Quantity, ends, ends, ends, st.sampled_from(Basis))


@cache
def _documents(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a document's type."""
    if kind is Quantity:
        return _quantities()
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{field.name: _documents(hints[field.name]) for field in fields(kind)})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return st.one_of(*map(_documents, arguments))
    if origin is tuple:
        return st.lists(_documents(arguments[0]), max_size=2).map(tuple)
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(
            st.text(max_size=3), st.none() | st.integers() | st.text() | st.lists(st.integers()), max_size=2
        )
    if issubclass(kind, Enum):
        return st.sampled_from(kind)
    return st.floats(allow_nan=False, allow_infinity=False) | st.integers() if kind is float else st.from_type(kind)


@pytest.mark.parametrize("kind", [PlanDocument, Certificate, CheckDocument])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_any_document_is_written_again_as_it_was_read(kind: Any, data: st.DataObject) -> None:
    text = _text(data.draw(_documents(kind)))
    assert _text(from_json(kind, json.loads(text), "it")) == text


def test_whole_numbers_are_integers_and_infinities_null() -> None:
    assert to_json(Quantity(2.0, 1.5, math.inf, Basis.MEASURED)) == {
        "value": 2, "low": 1.5, "high": None, "basis": "measured",
    }  # fmt: skip
    assert isinstance(to_json(Quantity.exact(2.0))["value"], int)
    endless = Quantity.exact(math.inf)
    assert to_json(endless) == {"value": None, "low": None, "high": None, "basis": "exact"}
    assert from_json(Quantity, to_json(endless), "it") == endless
    spread = Quantity(1, -math.inf, math.inf, Basis.MEASURED)
    assert from_json(Quantity, to_json(spread), "it") == spread


def _without(path: str) -> Callable[[Any], object]:
    *parents, last = path.split(".")
    return lambda document: _inside(document, parents).pop(last)


def _with(path: str, value: object) -> Callable[[Any], object]:
    *parents, last = path.split(".")
    return lambda document: _inside(document, parents).update({last: value})


def _inside(document: Any, path: list[str]) -> Any:
    for key in path:
        document = document[int(key) if isinstance(document, list) else key]
    return document


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without("searched"), "searched is missing"),
        (_without("chosen.memory.total"), "chosen.memory.total is missing"),
        (_with("chosen.memory.total", 5), "chosen.memory.total is 5, not an object"),
        (_without("chosen.memory.total.low"), "chosen.memory.total is .*, not an object with value, low"),
        (_with("chosen.goals.1.name", "speed"), "chosen.goals.1.name is 'speed', not TTFT or TPOT"),
        (_with("chosen.executable", 1), "chosen.executable is 1, not true or false"),
        (_with("lock.gpu.count", True), "lock.gpu.count is true, not a whole number"),
        (_with("lock.gpu.slots", 2), "lock.gpu.slots is not known"),
        (_with("chosen.speed.tpot_ms.basis", "guessed"), "chosen.speed.tpot_ms.basis is 'guessed'"),
        (_with("rejected", {}), "rejected is {}, not a list"),
        (_with("spec.target.gpu", None), "spec.target.gpu is null, not an object"),
    ],
)
def test_an_error_names_the_key(damage: Callable[[Any], object], says: str) -> None:
    document = to_json(plan(parse_spec(SPECS["every goal"])).document)
    damage(document)
    with pytest.raises(InputError, match=f"^a.plan.json: {says}"):
        from_json(PlanDocument, document, "a.plan.json")
