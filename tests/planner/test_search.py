"""The search: the choice is the best of the whole space, and every loser has a reason."""

from __future__ import annotations

import pytest

from passes import graph
from passes.ir.sources import open_model
from passes.quantize.scheme import parse_scheme
from planner.search import SearchResult, preference, search
from planner.space import workload_of
from planner.spec import parse_spec
from planner.verdict import Verdict
from targets.engines import find_engine

SPEC = """
model: Qwen/Qwen2.5-7B-Instruct
target: {{ gpu: rtx-4090, count: {count} }}
workload: {{ context: 8192, concurrency: 2, input_tokens: 1000, output_tokens: 200 }}
goals: {{ {goals} prefer: {prefer} }}
"""


def run(prefer: str = "quality", goals: str = "", count: int = 1) -> SearchResult:
    spec = parse_spec(SPEC.format(prefer=prefer, goals=goals, count=count))
    return search(spec, open_model(spec.model).ir)


def everything(result: SearchResult) -> list[Verdict]:
    return [v for v in (result.chosen, *result.rejected) if v is not None]


@pytest.mark.parametrize("prefer", ["quality", "speed", "context", "size"])
def test_no_candidate_that_meets_the_goals_is_preferred_to_the_chosen_one(prefer: str) -> None:
    result = run(prefer)
    assert result.chosen is not None
    meets = [v for v in everything(result) if all(r.code == "dominated_by" for r in v.reasons)]
    assert min(meets, key=lambda v: preference(prefer, v)).candidate == result.chosen.candidate


def test_every_loser_has_a_reason_and_none_is_lost() -> None:
    result = run(goals="decode: 60 tok/s,")
    assert all(v.reasons for v in result.rejected)
    assert len(everything(result)) == result.searched


def test_a_goal_that_nothing_meets_leaves_the_nearest_plans_and_what_each_misses() -> None:
    result = run(goals="decode: 100000 tok/s,")
    assert result.chosen is None
    assert any(r.code == "decode_missed" for r in result.nearest()[0].reasons)


def test_more_cards_are_weighed_only_where_the_spec_has_them() -> None:
    assert {v.candidate.settings.parallel.gpus for v in everything(run(count=1))} == {1}
    assert {v.candidate.settings.parallel.gpus for v in everything(run(count=4))} == {1, 2, 4}


def test_the_pareto_set_holds_no_candidate_that_another_beats() -> None:
    result = run()

    def figures(v: Verdict) -> tuple[float, ...]:
        assert v.speed is not None
        return v.quality.log_ppl_increase.value, -v.speed.decode_tok_s_per_request.value, v.memory.memory.total.value

    front = [figures(v) for v in result.pareto]
    for mine in front:
        assert not any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in front)
    assert result.chosen is not None
    assert any(figures(result.chosen) == mine for mine in front)


def test_a_group_size_that_does_not_divide_is_a_reason_with_the_sizes_that_do() -> None:
    spec = parse_spec("model: HuggingFaceTB/SmolLM2-135M-Instruct\ntarget: { gpu: rtx-4090 }\n")
    result = search(spec, open_model(spec.model).ir)
    reasons = {r.code: r for v in result.rejected for r in v.reasons}
    reason = reasons["group_size_128_does_not_divide_576"]
    assert "32 or 64" in str(reason.remedy)


def test_exl2_takes_the_most_bits_that_leave_room_for_the_context() -> None:
    spec = parse_spec(
        "model: Qwen/Qwen2.5-32B-Instruct\ntarget: { gpu: rtx-4090 }\nengine: exllamav2\nworkload: { context: 32768 }\n"
        "passes: { kv_cache: [q4], quantize: { methods: [exl2], dense: false } }\n"
    )
    result = search(spec, open_model(spec.model).ir)
    assert result.chosen is not None
    bits = result.chosen.candidate.passes[0].options()["bpw"]
    finer = parse_scheme(f"exl2-{bits + 0.01:.2f}")
    assert finer is not None
    ir = graph.rewrite(open_model(spec.model).ir, (finer, *result.chosen.candidate.passes[1:]))
    memory = find_engine("exllamav2").memory(ir, result.gpu, result.chosen.candidate.settings, workload_of(spec))
    assert not memory.starts


def test_pruning_is_weighed_only_when_asked() -> None:
    text = "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: rtx-4090 }\n"

    def pruned(passes: str) -> set[object]:
        spec = parse_spec(text + passes)
        found = everything(search(spec, open_model(spec.model).ir))
        return {p.options()["count"] for v in found for p in v.candidate.passes if p.name == "prune_depth"}

    assert pruned("") == set()
    assert pruned("passes: { prune: { depth: 3 } }\n") == {3}
    assert len(pruned("passes: { prune: allow }\n")) > 2
