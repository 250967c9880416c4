"""The search: the choice is the best of the whole space, and every loser has a reason."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.base import Pass
from passes.chain import illegal, rewrite
from passes.formats.kv_dtypes import KV_DTYPES
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.quantize.format_names import pass_named
from planner.choice.bits import fewest_bits, most_bits
from planner.choice.search import SearchResult, best, complete, preference, search, target_gpu
from planner.choice.space import settings_options, workload_of
from planner.choice.verdict import Candidate, Verdict
from planner.quality.expected import expected_quality
from planner.spec.parse import parse_spec
from planner.spec.spec import EngineChoice, Spec
from targets.engines.engine import Parallel, find_engine

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
    assert len(everything(result)) == len({(v.candidate.engine, v.candidate.passes) for v in everything(result)})
    assert len(everything(result)) <= result.searched


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
    finer = pass_named(f"exl2-{bits + 0.01:.2f}")
    assert finer is not None
    ir = rewrite(open_model(spec.model).ir, (finer, *result.chosen.candidate.passes[1:]))
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


def chains(ir: ModelIR, engine: str) -> Iterator[tuple[Pass, ...]]:
    """Every chain of an engine written out: each format, each hundredth of a bit, each KV type."""
    names: list[str | None] = [None, *find_engine(engine).weighed_formats]
    if engine == "exllamav2":
        names += [f"exl2-{n / 100:g}" for n in range(200, 801)]
    weighed = {dtype.name for dtype in KV_DTYPES if dtype.weighed}
    for name, dtype in itertools.product(names, (d for d in find_engine(engine).kv_dtypes if d in weighed)):
        parsed = pass_named(name) if name else None
        head = (parsed,) if parsed else ()
        if dtype == "auto":
            yield head
        else:
            scaled = KVCachePass(dtype, scales=True)
            yield (*head, KVCachePass(dtype) if illegal(ir, (*head, scaled)) else scaled)


def brute_force(spec: Spec, ir: ModelIR) -> list[Verdict]:
    """Every candidate that meets the goals, found by judging each alone, whatever another's verdict."""
    gpu, out = target_gpu(spec), []
    for engine in ("vllm", "exllamav2"):
        target = find_engine(engine)
        options = settings_options(engine, EngineChoice(name=engine), spec, gpu, Parallel())
        for chain in chains(ir, engine):
            if illegal(ir, chain):
                continue
            made, quality = rewrite(ir, chain), expected_quality(ir, chain)
            for settings in options:
                changed = tuple(n for n in ("gpu_memory_utilization", "max_num_batched_tokens", "max_num_seqs")
                                if getattr(settings, n) != getattr(options[0], n))  # fmt: skip
                memory = target.memory(made, gpu, settings, workload_of(spec))
                if target.illegal(made, gpu, settings) or not memory.serves:
                    continue
                verdict = complete(
                    spec, gpu, Verdict(Candidate(engine, chain, settings, changed), made, memory, None, quality)
                )
                if verdict.feasible:
                    out.append(verdict)
    return out


@pytest.mark.parametrize(
    ("gpu", "context", "goals"),
    [
        ("rtx-4090", 8192, "quality: { max_perplexity_increase: 10% },"),
        ("rtx-3060", 16384, "decode: 40 tok/s, quality: { max_perplexity_increase: 6% },"),
        ("rtx-3060", 4096, "ttft: 600 ms, quality: { max_kl: 0.03 },"),
    ],
)
def test_the_choice_is_that_of_a_brute_force_search_for_every_preference(gpu: str, context: int, goals: str) -> None:
    text = (
        "model: Qwen/Qwen2.5-7B-Instruct\ntarget: {{ gpu: {} }}\nworkload: {{ context: {}, concurrency: 2 }}\n"
        "goals: {{ {} prefer: {} }}\n"
    )
    spec = parse_spec(text.format(gpu, context, goals, "quality"))
    ir = open_model(spec.model).ir
    feasible = brute_force(spec, ir)
    assert feasible
    for prefer in ("quality", "speed", "context", "size"):
        result = search(parse_spec(text.format(gpu, context, goals, prefer)), ir)
        assert result.chosen is not None
        optimum = min(feasible, key=lambda v: preference(prefer, v))
        assert preference(prefer, result.chosen) == preference(prefer, optimum), (prefer, optimum.candidate.label)
        alone = best(parse_spec(text.format(gpu, context, goals, prefer)), ir)
        assert alone is not None and alone.candidate == result.chosen.candidate


def test_where_brute_force_finds_nothing_the_search_finds_nothing() -> None:
    spec = parse_spec(
        "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: rtx-3060 }\nworkload: { context: 32768, concurrency: 4 }\n"
        "goals: { quality: { max_kl: 0.00001 } }\n"
    )
    ir = open_model(spec.model).ir
    assert not brute_force(spec, ir)
    assert search(spec, ir).chosen is None


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-7B-Instruct", "google/gemma-3-27b-it", "deepseek-ai/DeepSeek-V3"])
@pytest.mark.parametrize("card", ["rtx-4090", "H100", "A100"])
def test_room_for_the_cache_only_rises_with_leaner_settings(model: str, card: str) -> None:
    spec = parse_spec(f"model: {model}\ntarget: {{ gpu: {card} }}\nworkload: {{ context: 8192, concurrency: 3 }}\n")
    ir, gpu, engine = open_model(spec.model).ir, target_gpu(spec), find_engine("vllm")
    options = settings_options("vllm", EngineChoice(name="vllm"), spec, gpu, Parallel())
    slack = {}
    for settings in options:
        memory = engine.memory(ir, gpu, settings, workload_of(spec))
        slack[settings] = memory.memory.kv_cache.value - memory.kv.bytes_per_sequence
    assert len(options) > 1
    assert max(slack.values()) == slack[options[-1]]
    assert min(slack.values()) == slack[options[0]]


@given(st.integers(200, 800), st.integers(200, 800), st.floats(0.2, 5.0))
def test_bits_are_solved_to_the_hundredth(limit: int, least: int, bend: float) -> None:
    """For any falling slack, straight or bent, and any threshold."""

    def slack(bits: float) -> float:
        gap = limit - round(bits * 100)
        return float(gap) if gap < 0 else gap**bend

    low = least / 100
    assert most_bits(slack, low, 8.0) == (limit / 100 if limit >= least else None)
    assert fewest_bits(lambda bits: round(bits * 100) >= limit, low, 8.0) == max(limit, least) / 100


def test_a_setting_is_changed_only_where_the_defaults_do_not_do() -> None:
    text = "model: Qwen/Qwen2.5-7B-Instruct\ntarget: {{ gpu: rtx-3060 }}\nengine: vllm\nworkload: {{ context: {} }}\n"
    ir = open_model("Qwen/Qwen2.5-7B-Instruct").ir
    changes = {}
    for context in (4096, 30000):
        spec = parse_spec(text.format(context) + "passes: { quantize: { formats: [w8a16-g128], dense: false } }\n")
        chosen = search(spec, ir).chosen
        assert chosen is not None
        changes[context] = chosen.candidate.changed
    assert len(changes[30000]) > len(changes[4096])


def test_pinned_prunings_and_recovery_stand_in_the_chain() -> None:
    spec = parse_spec(
        "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: rtx-4090 }\n"
        "passes: { prune: { depth: 2, intermediate: 16384 }, distill: { tokens: 1000000 } }\n"
    )
    names = {tuple(p.name for p in v.candidate.passes)[:3] for v in everything(search(spec, open_model(spec.model).ir))}
    assert names == {("prune_depth", "prune_width", "distill")}
