"""What a plan that meets nothing names as the nearest: the rule's choice of all that the search may set, and of their neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import yaml

from passes.errors import ReasonKind
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from planner.choice.best_first import likely_choice
from planner.choice.goals import ODDS_BAND, Goal
from planner.choice.judging.judge import Judge
from planner.choice.judging.simulated import as_told
from planner.choice.nearest import told_of
from planner.choice.search import SearchResult, by_maintenance, rule_of, search
from planner.choice.space.designs import Design, designs
from planner.choice.verdict import Verdict, refusals, undominated
from planner.explain.answer import explain
from planner.plan.make import Plan, plan
from planner.spec.parse import parse_spec
from planner.spec.patch import patched

#: Specs that nothing meets, by what is missed: one goal, two, the memory, the rate.
MISSED = {
    "a first token": ("meta-llama/Llama-3.3-70B-Instruct", "{ gpu: rtx-3090, count: 2, reserve: 0.5 GiB }", "concurrency: 4",
                      "{ ttft: 2 s, decode: 8 tok/s, quality: { max_perplexity_increase: 10% }, prefer: quality }"),
    "two goals": ("Qwen/Qwen2.5-7B-Instruct", "{ gpu: T4 }", "concurrency: 16", "{ ttft: 500 ms, decode: 40 tok/s, prefer: speed }"),
    "memory": ("Qwen/Qwen2.5-32B-Instruct", "{ gpu: L4 }", "concurrency: 64", "{ quality: { max_perplexity_increase: 4% } }"),
    "a rate": ("meta-llama/Llama-3.1-8B-Instruct", "{ gpu: L4 }", "rate: 20/s", "{ ttft: { p95: 2 s } }"),
    "quality": ("Qwen/Qwen2.5-14B-Instruct", "{ gpu: 12GB }", "concurrency: 1", "{ quality: { max_perplexity_increase: 0.1% } }"),
}  # fmt: skip


def searched(missed: str) -> tuple[SearchResult, ModelIR]:
    model, target, load, goals = MISSED[missed]
    spec = parse_spec(
        f"model: {model}\ntarget: {target}\ngoals: {goals}\n"
        f"workload: {{ context: 8192, {load}, input_tokens: 2000, output_tokens: 400 }}\n"
    )
    ir = open_model(spec.model).ir
    return search(spec, ir), ir


def everything(result: SearchResult, ir: ModelIR) -> Iterator[Verdict]:
    """Every candidate that the search may come to, judged in full."""
    spec, gpu = result.spec, result.gpu
    judge = Judge(spec, ir, gpu)
    for names in by_maintenance(spec, gpu):
        for design in designs(spec, ir, gpu, names):
            yield from judge.whole(design)


@pytest.mark.parametrize("missed", MISSED)
def test_the_nearest_is_what_the_rule_chooses_of_all_with_all_settings(missed: str) -> None:
    result, ir = searched(missed)
    assert result.chosen is None and result.closest is not None
    rule, told = rule_of(result.spec, ir, result.gpu), partial(as_told, result.spec, result.gpu)
    decision, _ = told_of(rule, list(everything(result, ir)), told)
    assert decision.chosen.candidate == result.closest.candidate
    assert result.nearest()[0] is result.closest


@pytest.mark.parametrize("missed", MISSED)
def test_no_candidate_and_no_neighbour_in_settings_comes_nearer(missed: str) -> None:
    """Of what is no more refused and waits no more, none has better odds of all that is asked, beyond their band."""
    result, ir = searched(missed)
    closest = result.closest
    assert closest is not None
    standing, judge = rule_of(result.spec, ir, result.gpu).standing, Judge(result.spec, ir, result.gpu)
    base = closest.candidate
    near = (
        replace(base.settings, max_num_seqs=rows, gpu_memory_utilization=share)
        for rows, share in itertools.product((None, 8, 16, 64), (None, 0.92, 0.95))
    )
    design = Design(base.engine, base.passes, (base.settings,), 1, base.published)
    neighbours = judge.whole(replace(design, settings=tuple(near)))
    formula = judge.whole(design)[0]
    for other in (*everything(result, ir), *neighbours):
        behind = refusals(other.reasons), standing.of(other), standing.unserved(other)
        if behind <= (refusals(formula.reasons), standing.of(formula), standing.unserved(formula)):
            fits_no_better = standing.unfit(formula) <= standing.unfit(other) + ODDS_BAND
            assert fits_no_better, other.candidate.label
            if standing.unfit(other) <= standing.unfit(formula):
                assert standing.doubt(formula) <= standing.doubt(other) + ODDS_BAND, other.candidate.label


@pytest.mark.parametrize("missed", MISSED)
def test_what_would_mend_a_candidate_is_a_change_of_the_spec_that_does(missed: str) -> None:
    """In a plan and in explain's answers alike: no words of `check`, no flag; where nothing was found, nothing is said."""
    result, _ = searched(missed)
    made, source = plan(result.spec), open_model(result.spec.model)
    said = [reason.remedy for row in made.document.rejected for reason in row.reasons]
    for question in ("why", "why not awq", "what if 1 card", None):
        answer = explain(result.spec, source, question)
        said += [reason.remedy for row in answer.candidates for reason in row.reasons]
        said += [reason.remedy for side in (answer.chosen, answer.other) if side for reason in side.missed]
    told = {remedy for remedy in said if remedy is not None}
    assert told
    for remedy in told:
        changed = yaml.safe_load(f"{{ {remedy} }}")
        assert isinstance(changed, dict) and patched(result.spec, changed) != result.spec, remedy


def test_explain_names_the_nearest_that_the_plan_names() -> None:
    result, _ = searched("a first token")
    assert result.closest is not None
    answer = explain(result.spec, open_model(result.spec.model), "why")
    assert result.closest.candidate.label in answer.answer


#: Specs that nothing meets, whose candidates are told of: large models on one card, a format that one engine does not read.
TOLD = {
    "speed": ("Qwen/Qwen2.5-72B-Instruct", "{ gpu: A100 80GB }", "concurrency: 4", "{ ttft: 4 s, decode: 25 tok/s }", "{}"),
    "a format": ("Qwen/Qwen3-32B", "{ gpu: B200 }", "concurrency: 16",
                 "{ decode: 40 tok/s, quality: { max_perplexity_increase: 2% }, prefer: speed }", "{ quantize: { formats: [nvfp4] } }"),
}  # fmt: skip


def told(missed: str) -> Plan:
    model, target, load, goals, passes = TOLD[missed]
    return plan(
        parse_spec(
            f"model: {model}\ntarget: {target}\ngoals: {goals}\npasses: {passes}\n"
            f"workload: {{ context: 32768, {load}, input_tokens: 8000, output_tokens: 400 }}\n"
        )
    )


def test_what_is_told_of_candidates_is_simulated_and_so_are_their_remedies() -> None:
    made = told("speed")
    assert not made.feasible
    near = [v for v in made.result.nearest() if all(r.kind is ReasonKind.GOAL_MISSED for r in v.reasons)]
    assert near and all(v.served is not None for v in near)
    (ttft,) = (goal for goal in near[0].goals if goal.goal is Goal.TTFT)
    assert near[0].served is not None and ttft.predicted == near[0].served.ttft_ms
    (reason,) = (reason for reason in made.document.rejected[0].reasons if reason.code == "TTFT_missed")
    assert reason.data["predicted"] == ttft.predicted.value and reason.remedy is not None
    asked = float(yaml.safe_load(f"{{ {reason.remedy} }}")["goals"]["ttft"].removesuffix(" ms"))
    assert ttft.predicted.value <= asked <= 1.01 * ttft.predicted.value


def test_what_is_illegal_is_near_only_where_everything_is() -> None:
    made = told("a format")
    near = made.result.nearest()
    assert near and all(r.kind is not ReasonKind.ILLEGAL for v in near for r in v.reasons)
    assert made.document.illegal
    alone = plan(patched(made.spec, {"engine": "exllamav2"}))
    assert alone.document.rejected and all(row.speed is None for row in alone.document.rejected)


def test_what_misses_less_than_the_nearest_by_less_than_can_be_told_is_told_with_what_it_lost_by() -> None:
    first, second, *_ = told("a format").result.nearest()
    assert second.distance < first.distance
    assert any(r.code == "dominated_by" and r.message.startswith("comes as near") for r in second.reasons)


#: Specs drawn at random: cards of laptops to data centres, closed loops and rates, one goal to three.
DRAWN = (
    ("Qwen/Qwen2.5-14B-Instruct", "RTX 4090", 1, "concurrency: 4, input_tokens: 2000, output_tokens: 50", "decode: 40 tok/s, prefer: cost"),
    ("Qwen/Qwen2.5-3B-Instruct", "8GB", 1, "concurrency: 4, input_tokens: 1000, output_tokens: 300", "ttft: 500 ms, prefer: speed"),
    ("meta-llama/Llama-3.1-8B-Instruct", "L4", 1, "concurrency: 16, input_tokens: 2000, output_tokens: 300",
     "ttft: 2 s, decode: 10 tok/s, prefer: quality"),
    ("meta-llama/Llama-3.1-8B-Instruct", "L4", "auto, max: 2", "rate: 2/s, input_tokens: 1000, output_tokens: 300",
     "ttft: 1 s, decode: 15 tok/s, prefer: speed"),
    ("Qwen/Qwen2.5-7B-Instruct", "A100 SXM4 80GB", 2, "concurrency: 64, input_tokens: 1000, output_tokens: 300",
     "ttft: { p95: 2 s }, quality: { max_perplexity_increase: 1% }, prefer: throughput"),
)  # fmt: skip


@pytest.mark.parametrize("drawn", DRAWN, ids=lambda drawn: f"{drawn[0]}-{drawn[1]}")
def test_what_is_chosen_or_nearest_is_beaten_by_no_other_that_is_shown(drawn: tuple[str, str, int, str, str]) -> None:
    """By the figures that they are shown with: simulated. What the formula alone chooses is not another plan than that; it chooses none
    where by its figures that one misses a goal.
    """
    model, gpu, count, load, goals = drawn
    spec = parse_spec(
        f"model: {model}\ntarget: {{ gpu: {gpu}, count: {count} }}\nworkload: {{ context: 8192, {load} }}\ngoals: {{ {goals} }}\n"
    )
    ir = open_model(spec.model).ir
    result = search(spec, ir)
    shown = [undominated(verdict) for verdict in result.nearest()]
    if result.chosen is None:
        decision = result.rule.decide(shown)
        assert decision is not None and decision.chosen is shown[0]
        return
    meets = [verdict for verdict in shown if verdict.feasible and verdict.served is not None]
    decision = result.rule.decide([result.chosen, *meets])
    assert decision is not None and decision.chosen is result.chosen
    likely = likely_choice(spec, ir)
    chosen = result.chosen.candidate
    design = Design(chosen.engine, chosen.passes, (chosen.settings,), 1, chosen.published)
    assert (likely is None) == (not Judge(spec, ir, result.gpu).whole(design)[0].feasible)
    assert likely is None or likely.candidate == chosen
    fewer = result.with_fewer_cards()
    assert fewer is None or fewer.served is not None or refusals(fewer.reasons) or fewer.capacity.room.value < 0
