"""What a plan that meets nothing names as the nearest: the rule's choice of all that the search may set, and of their neighbours."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from planner.choice.goals import ODDS_BAND
from planner.choice.judging.judge import Judge
from planner.choice.search import SearchResult, by_maintenance, rule_of, search
from planner.choice.space.designs import Design, designs
from planner.choice.verdict import Verdict, refusals
from planner.explain.answer import explain
from planner.spec.parse import parse_spec

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
    decision = rule_of(result.spec, ir, result.gpu).decide(list(everything(result, ir)))
    assert decision is not None and decision.chosen.candidate == result.closest.candidate
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


def test_explain_names_the_nearest_that_the_plan_names() -> None:
    result, _ = searched("a first token")
    assert result.closest is not None
    answer = explain(result.spec, open_model(result.spec.model), "why")
    assert result.closest.candidate.label in answer.answer
