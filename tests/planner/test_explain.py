"""Questions about a plan: every one that is advertised is answered with the figures of two plans; what is not known says what is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from passes.errors import InputError, TightfitError
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from planner.choice.judging.highest_load import margin, with_clients
from planner.choice.judging.simulated import under
from planner.choice.search import SearchResult, search
from planner.explain.answer import QUESTIONS, explain
from planner.explain.asked import Asked
from planner.explain.changes import change
from planner.explain.naming import has, may_have
from planner.plan.make import plan
from planner.spec.parse import parse_spec
from planner.spec.patch import at, patched, written
from planner.spec.spec import Spec
from tests.planner.questions import TEXTS, asked

#: What is asked in other words, or of one thing more.
MORE = (
    "why not exl2", "why not q4", "why not 2 cards", "what if 48GB", "what if 64k context", "what if a goal of 5 %", "what if no goals",
    "what if vllm and concurrency 4", "what if 2 cards, context 8192", "what if decode 10 tok/s", "what if max_num_seqs 8",
    "what if model Llama-3.2-1B-Instruct", "can it serve 4 users", "prefer speed", "faster", "why not int4", "why 1 card", "what if 1/s",
    "how fast is it", "why this plan", "is it possible with 2 cards",
    "what if model Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "is it faster with gptq", "is awq better", "will it fit on 16GB", "is it good",
    "does it run on a 3090", "why is the kv cache q6", "why did you choose exl2", "what if I use a 5090", "what would an H100 give",
    "why not the published awq", "what if no kv quantization", "what is the longest context", "how much memory does it need",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def searched_once() -> Iterator[None]:
    """Each spec is searched once for all questions of this file."""
    known: dict[tuple[str, str], SearchResult] = {}

    def remembered(spec: Spec, ir: ModelIR) -> SearchResult:
        key = (spec.model_dump_json(), ir.name)
        if key not in known:
            known[key] = search(spec, ir)
        return known[key]

    with patch("planner.explain.asked.search", remembered):
        yield


#: Many cards are searched for it.
_CHEAPEST = "cheapest card that fits"


@pytest.mark.parametrize(
    ("question", "name"),
    [
        pytest.param(
            question, name, marks=[pytest.mark.slow] if question == _CHEAPEST and name in ("MoE", "70B") else []
        )
        for question in QUESTIONS
        for name in TEXTS
    ],
)
def test_every_advertised_question_is_answered_with_figures(question: str, name: str) -> None:
    answer = explain(*asked(name), question)
    assert answer.chosen is not None and answer.other is not None and answer.decides
    assert answer.chosen.candidate in answer.answer
    assert "same plan" in answer.answer or answer.other.candidate in answer.answer
    figures = {each.what: each for each in answer.differences}
    assert {"memory", "one client", "all clients", "TTFT", "perplexity", "work"} <= set(figures)
    for each in figures.values():
        assert each.chosen.low <= each.chosen.value <= each.chosen.high and each.change
    assert answer.other.meets == (not answer.other.missed and all(goal.met for goal in answer.other.goals))
    assert json.dumps(answer.as_json())


@pytest.mark.parametrize(
    ("question", "same_as"),
    [
        ("how much slower with 2 users", "what if 2 users"), ("how fast is it on an L40S", "what if an L40S"),
        ("how good is it with a goal of 5 %", "what if a goal of 5 %"),
        ("how much memory does it take for 16k context", "what if 16k context"),
    ],
)  # fmt: skip
def test_figures_under_a_condition_are_those_of_the_changed_spec(question: str, same_as: str) -> None:
    assert explain(*asked("32B"), question) == explain(*asked("32B"), same_as)


#: The same question in the words of people, by the form that answers it.
WORDINGS = {
    "what if 2 cards": (
        "with 2 cards, would it fit?", "would it fit with 2 cards", "if I had 2 cards, would it work?", "suppose I had 2 cards",
        "2 cards", "how would it do with two cards?", "what happens with 2 cards", "with 2 cards?", "could we run it on 2 cards",
        "Are 2 cards enough?", "what if twice the cards", "can I squeeze it onto 2 cards",
    ),
    "what if 48GB card": ("can we cram it into a 48GB card?",),
    "what if input_tokens 6000": ("what happens if my users send 6000 token prompts",),
    "how many users": ("how many people can chat at the same time", "how many users can be served simultaneously?"),
    "how fast": ("why is TTFT so slow", "is the quality good enough", "why are the answers so slow"),
    "what if 32 clients": (
        "if I had 32 clients", "assuming 32 users", "with 32 clients, what happens?", "what if I had 32 users",
        "can it serve 32 users at once", "is it fast enough for 32 users",
    ),
    "what if 2 x 4090": ("can I run it on two 4090s", "could I use 2 4090s instead?", "would it work on 2 x 4090"),
    "what if 2 cards and context 16k": (
        "with 2 cards and context 16k, does it fit?", "if there were 2 cards, 16k context, would this run?",
    ),
    "what if model Qwen/Qwen3-8B": ("what about Qwen3-8B instead", "what if Qwen/Qwen3-8B"),
    "what if model Llama-3.2-1B-Instruct and 2 cards": ("with 2 cards, would meta-llama/Llama-3.2-1B-Instruct fit?",),
    "how many users with 2 cards": ("with 2 cards, how many users?",),
    "what if 2 L40S": ("what if 2 L40s", "two l40s"),
    "awq vs fp8": ("why not awq instead of fp8", "why can't we use awq over fp8", "what is better, awq or fp8?"),
    "why not awq": (
        "why is awq not chosen", "why can't we use awq", "why do you not use awq", "why don't we use awq", "why this and not awq",
        "why it instead of awq",
    ),
    "why": ("why doesn't it fit", "why does it not fit?", "why is nothing possible"),
}  # fmt: skip


@pytest.mark.parametrize(("form", "question"), [(form, each) for form, said in WORDINGS.items() for each in said])
def test_a_question_is_answered_in_the_words_that_people_use(form: str, question: str) -> None:
    told, plainly = explain(*asked("32B"), question), explain(*asked("32B"), form)
    assert told.differences and told.decides == plainly.decides
    assert told.other == plainly.other


def test_twice_a_rate_is_a_rate() -> None:
    spec = parse_spec("model: Llama-3.1-8B-Instruct\ntarget: {gpu: L4}\nworkload: {rate: 0.5/s}\n")
    assert change("twice the request rate", spec, lambda: "vllm")[0].workload.rate == 1.0
    assert change("twice the rate", spec, lambda: "vllm")[0].workload.rate == 1.0


def test_two_things_are_held_against_each_other() -> None:
    for question in ("awq vs fp8", "compare awq and fp8", "awq or fp8", "is awq better than fp8?"):
        answer = explain(*asked("32B"), question)
        assert answer.chosen is not None and answer.other is not None and answer.decides
        sides = " ".join((answer.chosen.candidate, answer.other.candidate)).lower()
        assert "awq" in sides or "fp8" in sides


def test_what_may_be_preferred_is_held_against_what_else_may_be() -> None:
    for question in ("compare speed and cost", "speed or cost", "speed vs price"):
        answer = explain(*asked("32B"), question)
        assert answer.chosen is not None and answer.other is not None
        assert (answer.chosen.role, answer.other.role) == ("speed", "cost")


@pytest.mark.parametrize(
    "question",
    [
        "why frobnicate", "why not frobnicate", "why frobnicate over blurb", "why not /", "purple monkey", "what if purple",
        "cheapest card for eight elephants", "how fast is it with elephants",
    ],
)  # fmt: skip
def test_words_that_mean_nothing_are_refused_without_a_search(question: str) -> None:
    with patch("planner.explain.asked.search", side_effect=AssertionError("searched")), pytest.raises(TightfitError):
        explain(*asked("32B"), question)


@pytest.mark.parametrize("name", ["32B", "MoE"])
def test_what_a_candidate_may_be_called_is_known_before_the_search(name: str) -> None:
    about = Asked(*asked(name))
    for verdict in about.verdicts:
        candidate = verdict.candidate
        for said in (candidate.label, candidate.weights, *(pass_.title() for pass_ in candidate.passes)):
            assert may_have(about, said) or not has(verdict, said), said


def test_what_was_not_weighed_is_searched_for_once_and_what_cannot_be_first() -> None:
    with patch("planner.explain.asked.search", side_effect=search) as searched, pytest.raises(TightfitError):
        explain(*asked("32B"), "what if MI300X")
    assert searched.call_count == 1
    with patch("planner.explain.asked.search", side_effect=search) as searched:
        explain(*asked("32B"), "why L40S")
        assert searched.call_count == 2


def test_words_where_figures_stand_are_not_told_off_as_figures() -> None:
    for question in ("context lots", "plenty of users"):
        with pytest.raises(InputError) as refused:
            explain(*asked("32B"), question)
        assert refused.value.message.startswith(f"cannot answer {question!r}")
    assert explain(*asked("32B"), "cheaper card").decides == explain(*asked("32B"), "cheapest card").decides


def test_candidates_that_lost_are_told_nearest_first() -> None:
    spec = parse_spec(
        "model: Llama-3.1-8B-Instruct\ntarget: {gpu: T4}\n"
        "workload: {context: 8192, concurrency: 1, input_tokens: 7500, output_tokens: 100}\n"
        "goals: {ttft: 300 ms, quality: {max_perplexity_increase: 5%}}\n"
    )
    source = open_model(spec.model)
    answer, nearest = explain(spec, source), explain(spec, source, "why no plan").chosen
    assert nearest is not None and answer.candidates[0].candidate == nearest.candidate


def test_what_a_plan_does_not_tell_is_said_with_what_may_be_asked() -> None:
    for question in ("how much memory does it take for coding", "can it do the dishes", "what is the meaning of life"):
        with pytest.raises(InputError) as refused:
            explain(*asked("32B"), question)
        assert question in refused.value.message and all(each in (refused.value.remedy or "") for each in QUESTIONS)
    with pytest.raises(InputError, match="perplexity that is lost"):
        explain(*asked("32B"), "how much memory does it take for coding")


def test_why_something_that_the_spec_names_is_held_against_what_it_leaves_out() -> None:
    spec = patched(asked("32B")[0], {"engine": "vllm", "passes": {"quantize": {"formats": ["gptq-4-g128"]}}})
    answer = explain(spec, asked("32B")[1], "why g128")
    assert answer.other is not None and "g128" not in answer.other.candidate
    assert answer.decides.startswith("the spec asks for g128") and answer.patch


def test_what_is_asked_under_a_condition_is_asked_of_the_changed_spec() -> None:
    spec, source = asked("32B")
    eight = patched(spec, {"workload": {"concurrency": 8}})
    for question in ("cheapest card", "longest context"):
        told = explain(spec, source, f"{question} for 8 users")
        assert told.answer == f"with 8 users: {explain(eight, source, question).answer}"
        assert told.patch.startswith("workload: {concurrency: 8}")
    with pytest.raises(InputError):
        explain(spec, source, "cheapest card for eight elephants")


def test_a_format_is_looked_for_among_weights_before_caches() -> None:
    for question in ("why not fp8", "why not 8 bit"):
        other = explain(*asked("32B"), question).other
        assert other is not None and other.weights.startswith(("fp8", "w8", "gptq-8"))


@pytest.mark.parametrize("question", MORE)
def test_other_words_are_understood(question: str) -> None:
    answer = explain(*asked("32B"), question)
    assert answer.differences and answer.decides


def test_how_many_users_is_the_most_that_keep_the_goals_and_what_breaks_beyond() -> None:
    text = """
model: Qwen/Qwen2.5-7B-Instruct
target: { gpu: L4 }
workload: { context: 8192, concurrency: 8, input_tokens: 1000, output_tokens: 200 }
goals: { tpot: 80 ms, ttft: 10 s }
"""
    spec = parse_spec(text)
    source = open_model(spec.model)
    answer = explain(spec, source, "how many users")
    told = re.search(r"([\d,]+) clients at once are served .* ([\d.]+) a second", answer.answer)
    assert told is not None and answer.other is not None
    most = int(told[1].replace(",", ""))
    assert answer.other.role == f"{most} clients" and not answer.other.missed
    beyond = re.match(r"with (\d+) clients: (.+)", answer.decides)
    assert beyond is not None and int(beyond[1]) > most and ("TPOT" in beyond[2] or "TTFT" in beyond[2])
    assert answer.patch == f"workload: {{concurrency: {most}}}"
    unbounded = explain(patched(spec, {"goals": {"tpot": None, "ttft": None}}), source, "highest rate")
    assert "no goal is on a request's own speed" in unbounded.answer


def test_what_breaks_beyond_is_nothing_that_more_users_leave_as_it_is() -> None:
    spec = parse_spec(
        "model: Qwen/Qwen3-8B\ntarget: { gpu: 16GB }\n"
        "workload: { context: 16384, concurrency: 4, input_tokens: 1000, output_tokens: 300 }\n"
        "goals: { decode: 25 tok/s, quality: { max_perplexity_increase: 5% } }\n"
    )
    answer = explain(spec, open_model(spec.model), "how many users")
    assert answer.decides.startswith("with 2 clients: decode") and "perplexity" not in answer.decides


def test_fewer_cards_are_what_a_plan_of_the_fewest_is_held_against() -> None:
    spec = parse_spec(
        "model: meta-llama/Llama-3.1-8B-Instruct\ntarget: { gpu: H100, count: auto }\n"
        "workload: { context: 4096, rate: 100/s, input_tokens: 500, output_tokens: 100 }\n"
    )
    answer = explain(spec, open_model(spec.model), "why 2 cards")
    assert "the nearest on 1 card" in answer.answer and "at most" in answer.decides and "queue grows" in answer.decides


def test_what_decides_is_a_goal_by_its_name() -> None:
    answer = explain(*asked("32B"), "what if goal 2 %")
    assert answer.other is not None and not answer.other.meets
    assert "perplexity" in answer.decides and "> +2.00 %" in answer.decides
    assert answer.patch == "goals: {quality: {max_perplexity_increase: 2 %}}"


def test_what_if_is_the_plan_of_the_changed_spec() -> None:
    spec, source = asked("32B")
    for words in ("2 x 4090", "vllm", "context 64k", "prefer speed", "concurrency 4"):
        answer = explain(spec, source, f"what if {words}")
        changed, _ = change(words, spec, lambda: "exllamav2")
        after = search(changed, source.ir)
        assert answer.other is not None
        if after.chosen is not None:
            assert answer.other.candidate == after.chosen.candidate.label
        else:
            assert "nothing meets the goals" in answer.answer


@pytest.mark.parametrize("name", TEXTS)
def test_without_a_question_all_are_listed(name: str) -> None:
    spec, source = asked(name)
    answer = explain(spec, source)
    assert len(answer.candidates) == len(search(spec, source.ir).rejected)
    assert f"{len(answer.candidates):,}" in answer.answer


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("is it raining", "why not awq"),
        ("why not zzz", "what if 2 x 4090"),
        ("why not awqq", "'awq'"),
        ("what if exlamav2", "exllamav2"),
        ("what if bogus 3", "optimize schema"),
        ("what if A100", "names several cards"),
        ("what if 3080", "names several cards"),
        ("what if context 100", "exceed the context"),
        ("what if ttft 1", "write a time"),
        ("what does it cost per million tokens", "cannot answer"),
        ("would everybody of my team like this nice card", "cannot answer"),
        ("cheapest crad that fits", "cheapest card that fits"),
    ],
)
def test_what_is_not_known_says_what_may_be_asked(question: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        explain(*asked("32B"), question)
    assert says in f"{caught.value.message} {caught.value.remedy}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("1 card", "target: {count: 1}"),
        ("2 x 4090", "target: {count: 2, gpu: RTX 4090}"),
        ("48 GB", "target: {gpu: 48GB}"),
        ("vllm", "engine: vllm"),
        ("concurrency 4", "workload: {concurrency: 4}"),
        ("context 64k", "workload: {context: 65536}"),
        ("context 1m", "workload: {context: 1048576}"),
        ("prefer speed", "goals: {prefer: speed}"),
        ("no prune", "passes: {prune: forbid}"),
        ("goal 2 %", "goals: {quality: {max_perplexity_increase: 2 %}}"),
        ("decode 30", "goals: {decode: 30 tok/s}"),
        ("w8a8", "passes: {quantize: {formats: [w8a8], methods: null, dense: null}}"),
        ("awq", "passes: {quantize: {formats: null, methods: [awq], dense: null}}"),
        ("fp8 cache", "passes: {kv_cache: fp8}"),
        ("max_num_seqs 8", "engine: {name: exllamav2, settings: {max_num_seqs: 8}}"),
        ("goals.bands.speed 10 %", "goals: {bands: {speed: 10 %}}"),
    ],
)
def test_words_become_a_patch_of_the_spec(words: str, said: str) -> None:
    spec, patch_ = change(words, asked("32B")[0], lambda: "exllamav2")
    assert written(patch_) == said
    assert spec == patched(asked("32B")[0], patch_)


def test_a_patch_replaces_and_takes_away() -> None:
    engine = "engine: { name: vllm, settings: { max_num_seqs: 3 } }\n"
    spec = parse_spec(f"model: x\ntarget: {{ gpu: rtx-4090, reserve: 0.5 GiB }}\ngoals: {{ ttft: 1 s }}\n{engine}")
    assert patched(spec, {}) == spec
    assert patched(spec, at(("goals", "ttft"), None)).goals.ttft is None
    assert patched(spec, at(("engine",), "auto")).engine == "auto"
    with pytest.raises(InputError, match="unknown key"):
        patched(spec, at(("goals", "tfft"), "1 s"))


def test_a_question_needs_neither_quotes_nor_a_plan(
    optimize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(TEXTS["32B"])
    assert optimize("explain", "why", "exllamav2")[0] == 2
    assert optimize("plan", "s.yaml")[0] == 0
    for words in (
        ["why", "exllamav2"],
        ["why exllamav2"],
        ["s.yaml", "why", "exllamav2?"],
        ["s.plan.json", "why exllamav2"],
    ):
        code, out, error = optimize("explain", *words)
        assert code == 0, error
        assert "decides" in out and "tok/s" in out and "GiB" in out
    code, out, _ = optimize("explain", "what", "if", "2", "x", "4090", "--json")
    assert code == 0 and json.loads(out)["other"]["on"] == "2 × RTX 4090"


def test_the_plan_says_how_many_explain_lists(optimize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(TEXTS["32B"])
    document = json.loads(optimize("plan", "s.yaml", "--json")[1])
    listed = json.loads(optimize("explain", "--json")[1])["candidates"]
    assert len(listed) == document["lost"]
    assert f"({document['lost'] - 3:,} more: optimize explain)" in optimize("plan", "s.yaml")[1]


def test_answers_are_readable_in_60_columns(optimize: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(TEXTS["32B"])
    with patch.dict(os.environ, {"COLUMNS": "60"}):
        _, out, _ = optimize("explain", "s.yaml", "why", "exllamav2")
        _, plan, _ = optimize("plan", "s.yaml")
    assert out and max(map(len, out.splitlines())) <= 60
    assert plan and max(map(len, plan.splitlines())) <= 60


@pytest.mark.parametrize(
    ("question", "task"),
    [
        ("how good is it for coding?", "coding"), ("is it good at math", "math"), ("what is its MMLU", "MMLU"),
        ("how does it do on humaneval", "humaneval"), ("how accurate is it for German", "German"), ("can it code", "code"),
    ],
)  # fmt: skip
def test_what_a_model_is_good_at_is_not_made_up(question: str, task: str) -> None:
    """What the plan takes away is said, what is not known is said to be unknown, and how to find it out."""
    said = explain(*asked("32B"), question).answer
    assert said.startswith(f"{task}: ") and "is not known here" in said
    assert "perplexity +" in said and "nats" in said and "run your own test" in said


def test_a_figure_in_such_a_question_is_a_condition_or_a_mistake() -> None:
    assert "with 4 users" in explain(*asked("32B"), "how good is it with 4 users").answer
    with pytest.raises(InputError, match="99 zebras"):
        explain(*asked("32B"), "how good is it at 99 zebras")


def test_the_fewest_bits_stay_with_the_plans_engine_and_say_who_has_fewer() -> None:
    spec = parse_spec(
        "model: Qwen/Qwen2.5-7B-Instruct\ntarget: { gpu: L4 }\nworkload: { input_tokens: 500, output_tokens: 100 }\n"
        "goals: { prefer: throughput }\n"
    )
    answer = explain(spec, open_model(spec.model), "fewest bits at 10 %")
    assert answer.other is not None and answer.other.candidate.startswith("vllm: ")
    assert "exllamav2: " in answer.answer and "where its engine is named" in answer.answer


def test_plan_and_explain_tell_one_number_of_users_that_the_decision_rule_confirms() -> None:
    text = """
model: Qwen/Qwen2.5-7B-Instruct
target: { gpu: L4 }
workload: { context: 8k, concurrency: 4, input_tokens: 1000, output_tokens: 200 }
goals: { ttft: 2 s, decode: 15 tok/s }
"""
    spec = parse_spec(text)
    made = plan(spec)
    assert made.chosen is not None and made.chosen.speed is not None
    most = made.chosen.speed.most_clients
    assert most is not None and most >= 4
    assert f"{most} clients at once are served" in explain(spec, made.source, "how many users").answer
    chosen = made.result.chosen
    assert chosen is not None
    odds = [margin(spec, under(with_clients(spec, count), made.result.gpu, chosen)) for count in (most, most + 1)]
    assert odds[0] >= 0 > odds[1]


def test_a_question_of_figures_is_answered_with_figures() -> None:
    assert "tok/s" in explain(*asked("32B"), "how fast is it").answer


def test_cards_in_words_and_lengths_in_tokens_are_understood() -> None:
    assert explain(*asked("32B"), "what if two cards").patch == "target: {count: 2}"
    assert explain(*asked("32B"), "what if prompt 1000 tokens").patch == "workload: {input_tokens: 1000}"


def test_a_key_without_a_value_is_told_so() -> None:
    with pytest.raises(InputError, match="wants a value"):
        explain(*asked("32B"), "what if images")
