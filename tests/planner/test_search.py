"""The search: the choice is the best of the whole space, and every loser has a reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.base import Pass
from passes.chain import illegal, needs_text, rewrite
from passes.ir.model import ModelIR
from passes.ir.names import Published, published_of
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.quantize.format_names import pass_named
from planner.choice import capacity as cache
from planner.choice.best_first import best
from planner.choice.demand import target_gpu, workload_of
from planner.choice.goals import NO_GOALS, Goal
from planner.choice.judging.candidate import complete
from planner.choice.judging.decision import decide
from planner.choice.judging.judge import Judge
from planner.choice.search import SearchResult, rule_of, search
from planner.choice.space.bits import fewest_bits, most_bits
from planner.choice.space.designs import designs, with_whole_experts
from planner.choice.space.published import description, published_quality
from planner.choice.space.settings import settings_options
from planner.choice.verdict import Candidate, GoalResult, Verdict
from planner.plan.make import plan
from planner.quality.expected import Quality, expected_quality, growth
from planner.spec.parse import parse_spec
from planner.spec.parts.goals import Bands, Goals
from planner.spec.parts.target import EngineChoice
from planner.spec.spec import Spec
from targets.engines.engine import Parallel, Settings, find_engine
from targets.gpu import find_gpu
from targets.quantity import Quantity
from targets.workload import Workload

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


PREFERENCES = ("quality", "speed", "throughput", "cost", "context", "size")


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_the_rule_chooses_the_same_among_all_that_meet_the_goals(prefer: str) -> None:
    result = run(prefer)
    assert result.chosen is not None
    meets = [v for v in everything(result) if all(r.code == "dominated_by" for r in v.reasons)]
    decision = rule_of(result.spec, open_model(result.spec.model).ir, result.gpu).decide(
        [replace(v, reasons=()) for v in meets]
    )
    assert decision is not None and decision.chosen.candidate == result.chosen.candidate


def test_every_loser_has_a_reason_and_none_is_lost() -> None:
    result = run(goals="decode: 60 tok/s,")
    assert all(v.reasons for v in result.rejected)
    kinds = {(v.candidate.engine, v.candidate.passes, v.candidate.published) for v in everything(result)}
    assert len(everything(result)) == len(kinds)
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

    rule = rule_of(result.spec, open_model(result.spec.model).ir, result.gpu)
    assert rule.pareto(result.pareto, result.chosen) == result.pareto
    assert result.chosen is not None
    assert result.chosen.candidate in {v.candidate for v in result.pareto}


def test_a_group_size_that_does_not_divide_is_a_reason_with_the_sizes_that_do() -> None:
    spec = parse_spec("model: HuggingFaceTB/SmolLM2-135M-Instruct\ntarget: { gpu: rtx-4090 }\n")
    result = search(spec, open_model(spec.model).ir)
    reasons = {r.code: r for v in result.rejected for r in v.reasons}
    reason = reasons["group_size_128_does_not_divide_576"]
    assert "32 or 64" in str(reason.remedy)


def test_exl2_takes_the_most_bits_that_surely_leave_room_for_the_context() -> None:
    spec = parse_spec(
        "model: Qwen/Qwen2.5-32B-Instruct\ntarget: { gpu: rtx-4090 }\nengine: exllamav2\nworkload: { context: 32768 }\n"
        "passes: { kv_cache: [q4], quantize: { methods: [exl2] } }\ngoals: { bands: { quality: 0% } }\n"
    )
    result = search(spec, open_model(spec.model).ir)
    assert result.chosen is not None
    chosen = result.chosen.candidate
    bits = chosen.passes[0].options()["bpw"]
    finer = pass_named(f"exl2-{bits + 0.01:.2f}")
    assert finer is not None
    ir = rewrite(open_model(spec.model).ir, (finer, *chosen.passes[1:]))
    memory = find_engine("exllamav2").memory(ir, result.gpu, chosen.settings, workload_of(spec))
    assert cache.capacity(memory, 1, workload_of(spec)).room.low < 0 <= result.chosen.capacity.room.low
    total = result.chosen.memory.memory.total
    assert total.high <= result.chosen.memory.memory.budget.value


def test_no_more_bits_are_taken_than_anybody_can_tell() -> None:
    """Where room is plenty, quality within its band of the widest is enough."""
    spec = parse_spec("model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: H100 }\nengine: exllamav2\n"
                      "passes: { kv_cache: [auto], quantize: { methods: [exl2] } }\n")  # fmt: skip
    ir = open_model(spec.model).ir
    chosen = search(spec, ir).chosen
    assert chosen is not None

    def loss(bits: float) -> float:
        stored = pass_named(f"exl2-{bits:g}")
        assert stored is not None
        return growth(expected_quality(ir, (stored,)).log_ppl_increase.value)

    bits = chosen.candidate.passes[0].options()["bpw"]
    assert bits < 8
    assert loss(bits) - loss(8) <= spec.goals.bands.quality < loss(round(bits - 0.01, 2)) - loss(8)


def test_pruning_is_weighed_only_when_asked() -> None:
    text = "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: rtx-4090 }\n"

    def pruned(passes: str) -> set[object]:
        spec = parse_spec(text + passes)
        found = everything(search(spec, open_model(spec.model).ir))
        return {p.options()["count"] for v in found for p in v.candidate.passes if p.name == "prune_depth"}

    assert pruned("") == set()
    assert pruned("passes: { prune: { depth: 3 } }\n") == {3}
    assert len(pruned("passes: { prune: allow }\n")) > 2


def brute_force(spec: Spec, ir: ModelIR, *, frugal: bool = False) -> list[Verdict]:
    """Every candidate of vLLM that meets the goals, found by judging each alone, whatever another's verdict: each format, each type of
    the cache, each published checkpoint, each setting, and each number of requests at once where not all fit; where none does, the same
    with settings that buy room with speed.
    """
    gpu, workload = target_gpu(spec), workload_of(spec)
    engine = find_engine("vllm")
    options = settings_options("vllm", EngineChoice(name="vllm"), spec, gpu, Parallel(), frugal=frugal)
    designs = [(made, passes) for made in (None, *published_of(ir.name)) for passes in chains(ir, made)]
    out = []
    for made, passes in designs:
        source = ir if made is None else description(ir, made)
        assert source is not None
        if illegal(source, passes):
            continue
        model = rewrite(source, passes)
        quality = expected_quality(ir, passes) if made is None else published_quality(ir, made, passes)
        verdicts = []
        for settings in options:
            verdict = judged(
                spec, model, Candidate("vllm", passes, settings, differing(options[0], settings), made), quality
            )
            verdicts.append(verdict)
        if not any(v.capacity.room.value >= 0 and v.memory.starts for v in verdicts):
            for verdict in (verdicts[0], verdicts[-1]):
                at_once = min(verdict.capacity.clients - 1, cache.running_at_once(verdict.memory))
                if at_once >= 1:
                    settings = replace(verdict.candidate.settings, max_num_seqs=at_once)
                    fewer = Candidate("vllm", passes, settings, differing(options[0], settings), made)
                    verdicts.append(judged(spec, model, fewer, quality))
        for verdict in verdicts:
            reasons = engine.illegal(model, gpu, verdict.candidate.settings)
            if not reasons and not cache.reasons(verdict.memory, verdict.capacity, workload):
                whole = complete(spec, gpu, verdict)
                out += [whole] if whole.feasible else []
    return out if out or frugal else brute_force(spec, ir, frugal=True)


def judged(spec: Spec, model: ModelIR, candidate: Candidate, quality: Quality) -> Verdict:
    memory = find_engine("vllm").memory(model, target_gpu(spec), candidate.settings, workload_of(spec))
    sequences = find_engine("vllm").scheduler(target_gpu(spec), candidate.settings, workload_of(spec)).sequences
    needs = cache.capacity(memory, sequences, workload_of(spec))
    memory = replace(memory, memory=cache.as_used(memory.memory, needs.needed_bytes))
    return Verdict(candidate, model, memory, needs, None, quality, notes=memory.notes)


def differing(base: Settings, settings: Settings) -> tuple[str, ...]:
    names = ("gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens")
    return tuple(name for name in names if getattr(base, name) != getattr(settings, name))


def chains(ir: ModelIR, made: Published | None) -> Iterator[tuple[Pass, ...]]:
    """Every chain of vLLM written out: each format, each type of the cache with and without scales."""
    names: list[str | None] = [None] if made else [None, *find_engine("vllm").weighed_formats]
    for name in names:
        parsed = pass_named(name) if name else None
        head = (parsed,) if parsed else ()
        yield head
        yield (*head, KVCachePass("fp8"))
        scaled = (*head, KVCachePass("fp8", scales=True))
        if head and not illegal(ir, scaled) and needs_text(head, rewrite(ir, head) if not illegal(ir, head) else ir):
            yield scaled


@pytest.mark.parametrize(
    ("gpu", "context", "goals"),
    [
        ("rtx-4090", 8192, "quality: { max_perplexity_increase: 10% },"),
        ("rtx-3060-12gb", 8192, "decode: 5 tok/s, quality: { max_perplexity_increase: 12% },"),
        ("rtx-3060-12gb", 4096, "ttft: 1800 ms, quality: { max_kl: 0.3 },"),
    ],
)
def test_the_choice_is_that_of_a_brute_force_search_for_every_preference(gpu: str, context: int, goals: str) -> None:
    text = (
        "model: Qwen/Qwen2.5-7B-Instruct\ntarget: {{ gpu: {} }}\nengine: vllm\nworkload: {{ context: {}, concurrency: 40 }}\n"
        "goals: {{ {} prefer: {} }}\n"
    )
    spec = parse_spec(text.format(gpu, context, goals, "quality"))
    ir = open_model(spec.model).ir
    feasible = brute_force(spec, ir)
    assert feasible
    for prefer in PREFERENCES:
        preferring = parse_spec(text.format(gpu, context, goals, prefer))
        result, optimum = search(preferring, ir), rule_of(preferring, ir, target_gpu(spec)).decide(feasible)
        assert result.chosen is not None and optimum is not None
        assert result.chosen.candidate == optimum.chosen.candidate, prefer
        alone = best(preferring, ir)
        assert alone is not None and alone.candidate == result.chosen.candidate


def test_a_choice_whose_simulation_misses_a_goal_is_replaced_as_a_brute_force_would() -> None:
    """Where formula and simulation part, the other settings of a design are tried as well as other designs."""
    spec = parse_spec(
        "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: RTX 3060 12GB }\nengine: vllm\nworkload: { context: 4096, concurrency: 40 }\n"
        "goals: { ttft: 1200 ms, quality: { max_kl: 0.3 } }\n"
    )
    ir, gpu = open_model(spec.model).ir, target_gpu(spec)
    optimum, _ = decide(spec, gpu, rule_of(spec, ir, gpu), brute_force(spec, ir))
    chosen = search(spec, ir).chosen
    assert chosen is not None and optimum is not None
    assert chosen.candidate == optimum.chosen.candidate


@lru_cache(maxsize=8)
def described(model: str) -> ModelIR:
    """A model that several tests ask about: what is remembered of its description serves them all."""
    return open_model(model).ir


@pytest.mark.parametrize("prefer", PREFERENCES)
@pytest.mark.parametrize(
    ("model", "target", "workload", "goals"),
    [
        ("llama-3.3-70b", "rtx-4090, count: 2", "8192, concurrency: 1", "decode: 20 tok/s, quality: { max_perplexity_increase: 10% },"),
        ("qwen2.5-32b", "rtx-4090", "8192, concurrency: 2", "decode: 20 tok/s, quality: { max_perplexity_increase: 10% },"),
        ("qwen2.5-32b", "rtx-3090, count: 2", "8192, concurrency: 24", "quality: { max_kl: 0.02 },"),
        ("llama-3.1-8b", "12GB", "8192, concurrency: 1", "decode: 20 tok/s,"),
        ("mixtral-8x7b", "L40S", "8192, concurrency: 8", ""),
    ],
)  # fmt: skip
def test_the_best_alone_is_what_the_search_chooses(
    model: str, target: str, workload: str, goals: str, prefer: str
) -> None:
    spec = parse_spec(
        f"model: {model}\ntarget: {{ gpu: {target} }}\nworkload: {{ context: {workload} }}\ngoals: {{ {goals} prefer: {prefer} }}\n"
    )
    ir = described(spec.model)
    chosen, alone = search(spec, ir).chosen, best(spec, ir)
    assert (chosen and chosen.candidate) == (alone and alone.candidate)


def test_where_brute_force_finds_nothing_the_search_finds_nothing() -> None:
    spec = parse_spec(
        "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: RTX 3060 12GB }\nengine: vllm\nworkload: { context: 32768, concurrency: 4 }\n"
        "goals: { quality: { max_kl: 0.00001 } }\n"
    )
    ir = open_model(spec.model).ir
    assert not brute_force(spec, ir)
    assert search(spec, ir).chosen is None


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-7B-Instruct", "google/gemma-3-27b-it", "deepseek-ai/DeepSeek-V3"])
@pytest.mark.parametrize("card", ["rtx-4090", "H100", "A100 SXM4 80GB"])
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


def test_where_clients_wait_with_all_the_one_that_answers_them_soonest_is_chosen() -> None:
    """174 clients of an 8B on an L4: as it is 26 of them run at once."""
    spec = parse_spec(
        "model: meta-llama/Llama-3.1-8B-Instruct\ntarget: { gpu: L4 }\nengine: vllm\ngoals: { quality: { max_perplexity_increase: 2% } }\n"
        "workload: { context: 8192, concurrency: 174, input_tokens: 800, output_tokens: 250 }\n"
    )
    result = search(spec, open_model(spec.model).ir)
    chosen = result.chosen
    assert chosen is not None and chosen.speed is not None
    meets = [replace(v, reasons=()) for v in everything(result) if all(r.code == "dominated_by" for r in v.reasons)]
    rivals = [v for v in meets if v.admissible(spec.goals)]
    if chosen.capacity.waiting:
        assert all(v.capacity.waiting for v in rivals)
        most = max(v.speed.throughput_tok_s.value for v in rivals if v.speed is not None)
        assert chosen.speed.throughput_tok_s.value >= most / (1 + spec.goals.bands.speed)


def test_settings_that_buy_room_with_speed_are_taken_where_nothing_else_fits_and_only_there() -> None:
    def chosen_on(card: str) -> Verdict:
        spec = parse_spec(
            f"model: openai/gpt-oss-20b\ntarget: {{ gpu: {card} }}\nengine: vllm\n"
            "workload: { context: 8192, concurrency: 1, input_tokens: 1000, output_tokens: 500 }\n"
        )
        chosen = search(spec, open_model(spec.model).ir).chosen
        assert chosen is not None
        return chosen

    tight, roomy = chosen_on("16GB"), chosen_on("24GB")
    assert tight.capacity.room.value >= 0 and "gpu_memory_utilization" in tight.candidate.changed
    assert tight.candidate.settings.enforce_eager or tight.candidate.settings.max_num_batched_tokens == 512
    assert not roomy.candidate.changed


@given(st.integers(200, 800), st.integers(200, 800), st.floats(0.2, 5.0))
@pytest.mark.parametrize("clients", [1, 2, 24])
def test_a_speed_that_settings_have_in_common_is_each_ones_own(clients: int) -> None:
    spec = parse_spec(SPEC.format(count=1, goals="decode: 30 tok/s,", prefer="speed"))
    spec = spec.model_copy(update={"workload": spec.workload.model_copy(update={"concurrency": clients})})
    ir, gpu, shared = open_model(spec.model).ir, target_gpu(spec), 0
    judge, load = Judge(spec, ir, gpu), workload_of(spec)
    for design in designs(spec, ir, gpu, ("vllm",)):
        verdicts = judge.whole(design)
        engine = find_engine(design.engine)
        for v in verdicts:
            own = replace(load, concurrency=v.capacity.clients)
            assert v.speed == engine.speed(v.ir, gpu, v.candidate.settings, own, v.memory)
        shared += len(verdicts) - len({id(v.speed) for v in verdicts})
    assert shared


def test_what_is_weighed_by_without_goals_is_what_a_spec_leaves_out() -> None:
    def alike(plain: object, part: object) -> None:
        assert is_dataclass(plain)
        for field in fields(plain):
            mine, theirs = getattr(plain, field.name), getattr(part, field.name)
            if is_dataclass(mine):
                alike(mine, theirs)
            else:
                assert mine == theirs, field.name

    alike(NO_GOALS, Goals())


def test_bits_are_solved_to_the_hundredth(limit: int, least: int, bend: float) -> None:
    """For any falling slack, straight or bent, and any threshold."""

    def slack(bits: float) -> float:
        gap = limit - round(bits * 100)
        return float(gap) if gap < 0 else gap**bend

    low = least / 100
    assert most_bits(slack, low, 8.0) == (limit / 100 if limit >= least else None)
    assert fewest_bits(lambda bits: round(bits * 100) >= limit, low, 8.0) == max(limit, least) / 100


def test_a_setting_is_changed_only_where_the_defaults_do_not_do() -> None:
    text = (
        "model: Qwen/Qwen2.5-7B-Instruct\ntarget: {{ gpu: RTX 3060 12GB }}\nengine: vllm\nworkload: {{ context: {} }}\n"
    )
    ir = open_model("Qwen/Qwen2.5-7B-Instruct").ir
    changes = {}
    for context in (4096, 30000):
        asked = "goals: { fit_confidence: 90% }\npasses: { quantize: { formats: [w8a16-g128], dense: false } }\n"
        chosen = search(parse_spec(text.format(context) + asked), ir).chosen
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


def test_blocks_are_tuned_without_pruning_and_the_whole_model_is_not_trained_for_nothing() -> None:
    text = "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: rtx-4090 }\nengine: vllm\n"
    passes = "passes: {{ distill: {{ method: {} }}, quantize: {{ formats: [w4a16-g128], methods: [gptq], dense: false }} }}\n"
    ir = open_model("Qwen/Qwen2.5-7B-Instruct").ir
    tuned, trained = (search(parse_spec(text + passes.format(method)), ir) for method in ("blockwise", "logits"))
    assert tuned.chosen is not None and "tune blocks on 1 M tokens" in tuned.chosen.candidate.passes[0].title()
    assert trained.chosen is None


def asked_for(goals: str, target: str, workload: str = "input_tokens: 500, output_tokens: 100") -> SearchResult:
    text = f"model: meta-llama/Llama-3.1-8B-Instruct\ntarget: {{ gpu: {target} }}\n"
    spec = parse_spec(f"{text}workload: {{ context: 4096, {workload} }}\ngoals: {{ {goals} }}\n")
    return search(spec, open_model(spec.model).ir)


def test_the_fewest_cards_are_taken_that_meet_the_goals_and_one_fewer_misses_them() -> None:
    result = asked_for("throughput: 10000 tok/s", "H100, count: auto")
    chosen, fewer = result.chosen, result.with_fewer_cards()
    assert chosen is not None and fewer is not None
    assert chosen.candidate.cards == 2 and chosen.admissible(result.spec.goals)
    assert fewer.candidate.cards == 1 and not all(goal.met for goal in fewer.goals)
    assert asked_for("decode: 20 tok/s", "H100, count: auto").chosen.candidate.cards == 1  # type: ignore[union-attr]


def test_requests_that_come_at_a_rate_are_served_by_the_fewest_replicas_that_do() -> None:
    chosen = asked_for(
        "ttft: { p95: 1 s }", "H100, count: auto", "rate: 100/s, input_tokens: 500, output_tokens: 100"
    ).chosen
    assert chosen is not None
    assert (chosen.candidate.cards, chosen.candidate.settings.parallel.dp) == (2, 2)


def test_replicas_of_a_model_of_experts_are_weighed_with_whole_ones() -> None:
    ir, dense = open_model("Qwen/Qwen3-30B-A3B").ir, open_model("Qwen/Qwen3-8B").ir
    spreads = (Parallel(2), Parallel(1, dp=4), Parallel(2, dp=2), Parallel(2, pp=2))
    assert [with_whole_experts(spread, ir).ep for spread in spreads] == [1, 4, 4, 1]
    assert {with_whole_experts(spread, dense) for spread in spreads} == set(spreads)


def test_a_batch_job_takes_as_many_clients_as_bring_most_and_launches_with_them() -> None:
    result = asked_for("prefer: throughput", "L40S", "input_tokens: 1000, output_tokens: 200")
    chosen = result.chosen
    assert chosen is not None and chosen.speed is not None
    assert chosen.candidate.settings.max_num_seqs == chosen.capacity.clients > 16
    assert chosen.capacity.room.low >= 0 and not chosen.capacity.waiting
    few = asked_for("prefer: throughput", "L40S", "concurrency: 16, input_tokens: 1000, output_tokens: 200").chosen
    assert few is not None and few.speed is not None
    assert few.speed.throughput_tok_s.value < chosen.speed.throughput_tok_s.value


@pytest.mark.parametrize(
    ("goal", "band", "tolerated"),
    [
        (GoalResult(Goal.DECODE, 30.0, Quantity.exact(29.995)), Bands(), True),
        (GoalResult(Goal.DECODE, 30.0, Quantity.exact(28.0)), Bands(), False),
        (GoalResult(Goal.TTFT, 500.0, Quantity.exact(510.0)), Bands(), True),
        (GoalResult(Goal.TTFT, 500.0, Quantity.exact(510.0)), Bands.model_validate({"speed": "1%"}), False),
        (GoalResult(Goal.PERPLEXITY, 0.03, Quantity.exact(0.034)), Bands(), True),
        (GoalResult(Goal.PERPLEXITY, 0.03, Quantity.exact(0.036)), Bands(), False),
        (GoalResult(Goal.KL, 0.03, Quantity.exact(0.031)), Bands(), True),
    ],
)
def test_a_goal_missed_by_less_than_its_band_is_near_whichever_it_is(
    goal: GoalResult, band: Bands, tolerated: bool
) -> None:
    assert not goal.met and goal.tolerated(band) == tolerated


def test_where_no_newest_engine_has_code_for_a_card_the_version_that_had_it_comes_first() -> None:
    document = plan(
        parse_spec(
            "model: meta-llama/Llama-2-13b-chat-hf\ntarget: { gpu: V100 SXM2 32GB }\nworkload: { context: 2048, concurrency: 2 }\n"
        )
    ).document
    assert document.chosen is None
    assert document.rejected[0].candidate == "vllm: as it is"
    assert document.alternatives[0].change == "vllm 0.19"


def made_by(quantize: str) -> set[str]:
    spec = parse_spec(
        "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: rtx-4090 }\nengine: vllm\n"
        f"passes: {{ kv_cache: [auto], quantize: {{ {quantize} }} }}\n"
    )
    verdicts = everything(search(spec, open_model(spec.model).ir))
    return {v.candidate.passes[0].text() for v in verdicts if v.candidate.passes}


def test_named_methods_rule_every_format_and_a_named_format_is_made_by_them() -> None:
    assert not any("online" in made or "rtn" in made for made in made_by("methods: [gptq]"))
    assert any("online" in made for made in made_by("methods: [rtn]"))
    assert all("awq" in made for made in made_by("formats: [w4a16-g128], methods: [awq]"))


def test_weights_rounded_while_loading_are_as_fast_as_stored_ones() -> None:
    engine, gpu = find_engine("vllm"), find_gpu("rtx-4090")
    ir, workload = open_model("Qwen/Qwen2.5-7B-Instruct").ir, Workload(4096, 1, 3000, 40)
    stored, loaded = (
        engine.estimate(rewrite(ir, (made,)), gpu, Settings(), workload).speed
        for made in map(pass_named, ("fp8", "fp8-online"))
        if made is not None
    )
    assert stored.ttft_ms.value == pytest.approx(loaded.ttft_ms.value, rel=0.01)
    assert stored.tpot_ms.value == pytest.approx(loaded.tpot_ms.value, rel=0.01)


def test_a_goal_on_a_percentile_is_judged_by_the_simulated_load() -> None:
    text = "model: meta-llama/Llama-3.1-8B-Instruct\ntarget: { gpu: rtx-4090 }\nworkload: { context: 8192, concurrency: 16 }\n"
    spec = parse_spec(text + "goals: { ttft: { p99: 400 ms } }\n")
    chosen = search(spec, open_model(spec.model).ir).chosen
    assert chosen is None or (chosen.served is not None and chosen.goals[0].met)


def test_a_coin_toss_buys_no_archived_engine_for_many_clients() -> None:
    """Where a maintained engine holds the load and only misses a goal on speed, one that nobody maintains must be as likely as is asked."""
    spec = parse_spec(
        "model: Qwen/Qwen2.5-72B-Instruct\ntarget: { gpu: L40S, count: 2 }\n"
        "workload: { context: 16384, concurrency: 8, input_tokens: 2000, output_tokens: 400 }\n"
        "goals: { decode: 15 tok/s, quality: { max_perplexity_increase: 6% } }\n"
    )
    result = search(spec, open_model(spec.model).ir)
    leading = result.chosen or result.closest
    assert leading is not None and find_engine(leading.candidate.engine).archived is None
    archived = [v for v in everything(result) if find_engine(v.candidate.engine).archived is not None]
    assert any(reason.code == "archived" for v in archived for reason in v.reasons)
