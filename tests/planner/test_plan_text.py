"""What a plan says to a person: its choices, why the chosen one won, odds beside marks, what cannot be done here, remedies that work."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from rich.console import Console

from passes.ir.sources import open_model
from passes.quantize.format_names import examples, pass_named
from planner.asked import spoken
from planner.certificate import Comparison
from planner.choice.goals import Goal
from planner.choice.judging.judge import judged
from planner.choice.rule.rule import Rule
from planner.choice.rule.words import FIGURES, MAKING
from planner.choice.search import search
from planner.cli.tables.certificate import _mark as compared_mark
from planner.cli.tables.plan import _UNKNOWN, Room, _helpful, print_plan
from planner.explain.changes import change
from planner.explain.diff import Change, told
from planner.figures import all_apart
from planner.plan.document import PlanDocument
from planner.plan.make import plan
from planner.plan.remedies import _under, followable
from planner.spec.parse import parse_spec
from planner.spec.parts.goals import Goals
from planner.spec.patch import patched
from targets.quantity import Quantity
from tests.planner.questions import TEXTS, asked

_PUBLISHED = """
model: meta-llama/Llama-3.3-70B-Instruct
target: { gpu: H100, count: 2 }
workload: { context: 8192, concurrency: 8 }
goals: { quality: { max_perplexity_increase: 3% } }
"""

_LLAMA = """
model: meta-llama/Llama-3.3-70B-Instruct
target: {target}
workload: {{ context: 8192, concurrency: 4, input_tokens: 2000, output_tokens: 400 }}
goals: {{ ttft: 2 s, decode: 20 tok/s, quality: {{ max_perplexity_increase: 5% }} }}
"""


def printed(document: PlanDocument, room: Room = _UNKNOWN, width: int = 1000) -> str:
    console = Console(width=width, highlight=False, markup=False, force_terminal=False)
    with console.capture() as captured:
        print_plan(console, document, document.lock.gpu.name, "a.plan.json", room)
    return captured.get()


@pytest.fixture(scope="module")
def documents() -> dict[str, PlanDocument]:
    return {name: plan(parse_spec(text)).document for name, text in (TEXTS | {"published": _PUBLISHED}).items()}


@pytest.mark.parametrize("name", [*TEXTS, "published"])
def test_every_plan_shows_three_to_six_choices_that_can_be_told_apart(
    name: str, documents: dict[str, PlanDocument]
) -> None:
    text = printed(documents[name])
    rows = text.split("  Choices  ")[1].split("\n\n")[0].splitlines()[1:]
    assert 3 <= len(rows) <= 6
    assert len({re.sub(r"\s+", " ", row) for row in rows}) == len(rows)
    assert all(re.search(r"% .*GiB|MiB", row) for row in rows)
    assert documents[name].chosen is None or rows[0].lstrip().startswith("►")


@pytest.mark.parametrize("name", ["32B", "demo", "MoE", "published"])
def test_a_plan_says_why_and_on_which_cards_and_how_check_spells_it(
    name: str, documents: dict[str, PlanDocument]
) -> None:
    document, text = documents[name], printed(documents[name])
    chosen = document.decision
    assert chosen.why and f"  Why      {chosen.why}" in text
    assert re.search(r"  Runs     \d cards?: TP \d, PP \d, DP \d; weights \S+; KV cache \S+", text)
    for row in (*document.pareto, *(r for r in document.rejected if r.quality is not None)):
        assert row.weights == "as-is" or pass_named(row.weights or "") is not None
        assert row.kv_cache_dtype and row.cards >= 1


def test_the_model_that_was_asked_for_stands_beside_the_published_one(documents: dict[str, PlanDocument]) -> None:
    document = documents["published"]
    assert document.decision.published
    head = printed(document).splitlines()[1:3]
    assert "meta-llama/Llama-3.3-70B-Instruct" in head[0] and document.decision.published in head[1]


def test_no_plan_names_the_nearest_and_by_how_much_it_misses(documents: dict[str, PlanDocument]) -> None:
    text = printed(documents["70B"])
    nearest = documents["70B"].rejected[0]
    assert f"  Nearest  {nearest.candidate}" in text
    assert re.search(r"GiB too much|points too much|off by", text.split("Nearest")[1].split("\n\n")[0])


def test_a_tick_stands_beside_no_odds_below_what_is_asked(documents: dict[str, PlanDocument]) -> None:
    document = documents["32B"]
    goals = tuple(replace(goal, odds=0.5, met=True) for goal in document.decision.goals)
    text = printed(replace(document, chosen=replace(document.decision, goals=goals)))
    told = text.split("  Goals  ")[1].split("\n\n")[0]
    assert "✓" not in told and told.count("~ 50%, 80% asked") == len(goals)


def test_what_this_machine_cannot_hold_is_said_instead_of_what_is_next(documents: dict[str, PlanDocument]) -> None:
    document = documents["32B"]
    able = replace(document, chosen=replace(document.decision, executable=True, missing=()))
    assert "Next: optimize apply a.plan.json" in printed(able, Room(1 << 50, 1 << 50))
    short = printed(able, Room(1 << 30, 1 << 50))
    assert "Next" not in short and "of memory, this machine has 1.00 GiB" in short
    assert "of disk, this machine has 1.00 GiB" in printed(able, Room(1 << 50, 1 << 30))


def test_illegal_lists_only_what_was_asked_for(documents: dict[str, PlanDocument]) -> None:
    assert all("Illegal" not in printed(document) for document in documents.values())
    asked_for = TEXTS["demo"] + "\npasses: { kv_cache: [auto], quantize: { formats: [awq-4-g128, w8a8] } }\n"
    named = plan(parse_spec(asked_for.replace("passes: { kv_cache: [auto] }", ""))).document
    assert "Illegal  group size 128 does not divide" in printed(named)
    alone = asked_for.replace("quantize: { formats: [awq-4-g128, w8a8] }", "distill: { tokens: 1_000_000 }")
    text = printed(plan(parse_spec(alone.replace("passes: { kv_cache: [auto] }", ""))).document)
    assert "Illegal  without pruning before it the student is the teacher itself" in text
    assert "What the spec names cannot be had so" in text and "another card" not in text


def _patch(said: str) -> Any:
    return yaml.safe_load("{" + said + "}")


@pytest.mark.parametrize("name", TEXTS)
def test_every_remedy_of_a_plan_can_be_put_into_the_spec_and_does_it(name: str) -> None:
    spec, source = asked(name)
    result = search(spec, source.ir)
    tried = 0
    for verdict in (*result.nearest(8), *(v for v in result.rejected[::40])):
        for reason, said in zip(verdict.reasons, followable(spec, source.ir, verdict), strict=True):
            if said.remedy is not None:
                tried += 1
                patch = _patch(said.remedy)
                after = judged(patched(spec, patch), source.ir, _under(patch, verdict.candidate))
                assert reason.code not in {each.code for each in after.reasons}, said
    assert tried or name == "demo"


def test_engines_that_are_not_weighed_say_the_key_that_weighs_them(documents: dict[str, PlanDocument]) -> None:
    remedies = {
        reason.remedy
        for document in documents.values()
        for row in document.rejected
        for reason in row.reasons
        if reason.remedy is not None
    }
    assert remedies
    spec = asked("32B")[0]
    assert all(patched(spec, _patch(remedy)) != spec for remedy in remedies)


@pytest.mark.parametrize("name", examples())
def test_formats_are_spoken_with_the_name_that_check_takes(name: str) -> None:
    pass_ = pass_named(name)
    if pass_ is not None and not name.startswith("mixed"):
        words = spoken(pass_)
        assert pass_named(words.rpartition("(")[2].removesuffix(")")) is not None
        assert re.match(r"[\d.]+ bit", words)


def test_better_than_predicted_is_no_cross() -> None:
    slow = Comparison("decode, tok/s", "40 (35 … 45)", "20", holds=False, binding=False)
    assert compared_mark(replace(slow, measured="60", better=True)).plain == "better"
    assert compared_mark(slow).plain == "outside"
    assert compared_mark(replace(slow, binding=True)).plain == "✗"
    assert compared_mark(replace(slow, measured="not measured")).plain == "-"


@pytest.mark.parametrize(
    ("what", "old", "new", "shown"),
    [
        ("ttft_ms", 786.1234567, 1530.2, ("TTFT", "786 ms", "1.53 s")),
        ("tensor_bytes", 18909572656, 18909572000, ("weights", "17.610912 GiB", "17.610911 GiB")),
        ("log_ppl_increase", 0.0, None, ("perplexity", "+0.00 %", "none")),
        ("engine.name", "vllm", "exllamav2", ("engine.name", "vllm", "exllamav2")),
        ("passes[0].bpw", 4.29, 4.294, ("passes[0].bpw", "4.29 bits", "4.294 bits")),
        ("spec.target.reserve", "0 B", "536870912 B", ("spec.target.reserve", "0.0 MiB", "0.50 GiB")),
        ("lock.header_digest", "a" * 64, "b" * 64, ("lock.header_digest", "aaaaaaaa", "bbbbbbbb")),
        ("chosen", {"a": [1, True]}, None, ("chosen", "a 1; yes", "none")),
    ],
)
def test_differences_have_units(what: str, old: Any, new: Any, shown: tuple[str, str, str]) -> None:
    assert told(Change(what, old, new)) == shown


def test_a_column_tells_its_figures_apart_where_people_could() -> None:
    assert all_apart((15.2, 15.23, 15.2), "tok/s") == ("15.2 tok/s", "15.23 tok/s", "15.2 tok/s")
    assert all_apart((694.75088, 694.75094), "ms", 5e-4) == ("695 ms", "695 ms")
    assert all_apart((0.11 * 2**30, 0.1104 * 2**30), "B") == ("112.6 MiB", "113.0 MiB")


def test_the_document_says_what_it_says_in_json(documents: dict[str, PlanDocument], tmp_path: Path) -> None:
    from planner.plan.codec import to_json
    from planner.plan.saved import load_plan, save

    for name, document in documents.items():
        save(document, tmp_path / f"{name}.json")
        assert to_json(load_plan(tmp_path / f"{name}.json")) == json.loads(json.dumps(to_json(document)))
    assert {goal.name for goal in documents["32B"].decision.goals} == {Goal.TTFT, Goal.DECODE, Goal.PERPLEXITY}


@pytest.mark.parametrize("prefer", get_args(Goals.model_fields["prefer"].annotation))
def test_every_rung_of_the_rule_has_words_for_the_chosen_one(prefer: str) -> None:
    spec, source = asked("32B")
    result = search(spec, source.ir)
    assert result.chosen is not None
    rule = Rule(spec.goals.model_copy(update={"prefer": prefer}), result.gpu, False)
    for criterion in rule.criteria:
        making, told = rule._why(result.chosen, [criterion.name]).split("; ", 1)
        assert making in MAKING and len(told) > 5
        assert criterion.says(2.0, 1.0)
    assert len(rule._figures(result.chosen)) == len(FIGURES)


def test_a_chosen_one_that_takes_anothers_place_says_whose_and_in_what() -> None:
    spec, source = asked("32B")
    result = search(spec, source.ir)
    assert result.chosen is not None
    quality = replace(result.chosen.quality, log_ppl_increase=Quantity.exact(9.0))
    said = Rule(spec.goals, result.gpu, False)._replaces(result.chosen, replace(result.chosen, quality=quality))
    assert result.chosen.candidate.label in said and "better in quality" in said


def test_what_cannot_be_had_is_no_matter_of_cards() -> None:
    refused = plan(parse_spec(TEXTS["32B"] + "passes: { prune: { depth: 900 } }\n")).document
    text = printed(refused)
    assert refused.chosen is None and "of 64 blocks cannot go" in text
    assert "change it as is said above" in text and "what if 2 cards" not in text and "Choices" not in text


def test_nobody_is_said_to_meet_the_goals_where_none_is_met() -> None:
    """A 7B chat model on a laptop of 8 GB comes near to its goals: so do the others, and the plan says so of itself."""
    document = plan(parse_spec(_NEAR)).document
    text = printed(document)
    assert document.chosen is not None and not all(goal.met for goal in document.chosen.goals)
    assert "comes nearest to the goals" in text and "meets the goals too" not in text


_NEAR = """
model: Qwen/Qwen2.5-7B-Instruct
target: { gpu: rtx 4070 laptop, reserve: 0.5 GiB }
workload: { context: 8192, concurrency: 4, input_tokens: 2000, output_tokens: 400 }
goals: { ttft: 1.3 s, decode: 20 tok/s, quality: { max_perplexity_increase: 5% } }
"""


def test_without_a_goal_on_waiting_the_odds_of_what_is_asked_still_bound_the_clients() -> None:
    text = printed(
        plan(parse_spec(_NEAR.replace("ttft: 1.3 s, ", "").replace("concurrency: 4", "concurrency: 1"))).document
    )
    assert "1,024 clients" not in text and "within the goals on a request with the odds asked for (80%)" in text


def test_what_is_served_as_published_is_launched_next() -> None:
    spec = """
model: Qwen/Qwen2.5-7B-Instruct
target: { gpu: rtx 4060 laptop }
workload: { context: 8192, concurrency: 1, input_tokens: 1000, output_tokens: 300 }
goals: { decode: 15 tok/s }
"""
    text = printed(plan(parse_spec(spec)).document)
    assert "Nothing to make" in text and "optimize launch" in text and "not applied here" not in text


def test_what_is_near_names_the_goals_that_it_misses() -> None:
    spec, source = parse_spec(_NEAR.replace("5%", "5.5%").replace("1.3 s", "3 s")), "Qwen/Qwen2.5-7B-Instruct"
    lost = [reason for v in search(spec, open_model(source).ir).rejected for reason in v.reasons]
    near = [reason.message for reason in lost if reason.message.endswith("by less than the band")]
    assert near and all(" > " in message or " < " in message for message in near)


def test_a_plan_that_trains_says_how_many_tokens_its_goal_is_expected_to_need() -> None:
    spec = parse_spec("""
model: Llama-3.1-8B
target: { gpu: rtx-4090 }
engine: vllm
workload: { context: 8192, concurrency: 4 }
goals: { quality: { max_perplexity_increase: 30% } }
passes: { prune: { depth: 4 }, distill: { tokens: 40_000_000 }, quantize: { formats: [w4a16-g128], dense: false }, kv_cache: [fp8] }
""")
    chosen = plan(spec).document.decision
    [said] = re.findall(r"need about ([0-9.]+) M tokens of training; the plan has 40 M", " ".join(chosen.notes))

    def growth(tokens: float) -> float:
        trained = patched(spec, {"passes": {"distill": {"tokens": round(tokens * 1e6)}}})
        result = plan(trained).result
        told = result.chosen or result.closest
        assert told is not None
        return math.expm1(told.quality.log_ppl_increase.value)

    assert growth(1.1 * float(said)) < 0.3 < growth(0.9 * float(said))


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("{ gpu: RTX 3090, count: 2 }", "what if 4 cards"),
        ("{ gpu: 24GB }", "what if model Qwen/Qwen2.5-14B-Instruct"),
    ],
)
def test_no_plan_ends_with_a_question_that_a_plan_answers(target: str, asked: str) -> None:
    text = printed(plan(parse_spec(_LLAMA.format(target=target))).document)
    assert text.rstrip().endswith(asked) and ("speed of L4 assumed" in text) is ("24GB" in target)


def test_where_no_other_cards_do_a_question_loosens_what_the_nearest_misses() -> None:
    spec = parse_spec(_LLAMA.format(target="{ gpu: RTX 3090, count: 2 }"))
    question = _helpful(replace(plan(spec).document, alternatives=()))
    loosened, patch = change(question.removeprefix("what if "), spec, lambda: "vllm")
    assert list(patch) == ["goals"] and plan(loosened).document.chosen is not None


def test_the_plan_of_a_model_that_embeds_texts_tells_of_nothing_that_is_decoded(optimize: Any, tmp_path: Path) -> None:
    spec = tmp_path / "embed.yaml"
    spec.write_text(
        "model: Qwen/Qwen3-Embedding-0.6B\ntarget: { gpu: L4 }\n"
        "workload: { context: 2048, concurrency: 8, input_tokens: 512, output_tokens: 1 }\n"
    )
    code, out, _ = optimize("plan", spec, "-o", tmp_path / "embed.plan.json")
    assert code == 0 and "TTFT" in out
    assert not any(word in out for word in ("decode", "tok/s", "TPOT"))
