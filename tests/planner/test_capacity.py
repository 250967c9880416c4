"""The cache that a load needs: requests in flight by Little's law, and one definition for `plan` and `check`."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from passes.errors import InputError
from passes.ir.sources import open_model
from planner.check import check
from planner.choice.capacity import in_flight, running_at_once
from planner.choice.demand import workload_of
from planner.choice.question import Load, Question
from planner.choice.search import SearchResult, search
from planner.cli.main import application
from planner.plan.launch import launch, launch_request
from planner.plan.make import plan
from planner.plan.remedies import longer_context
from planner.spec.parse import parse_spec
from planner.spec.patch import patched
from targets.engines.engine import Settings, SpeedEstimate, find_engine
from targets.figures import apart
from targets.gpu import find_gpu
from targets.quantity import Quantity
from targets.workload import Workload

MODEL = "Qwen/Qwen2.5-7B-Instruct"
LENGTHS = "context: 4096, input_tokens: 800, output_tokens: 201"


def text(load: str, engine: str = "vllm", gpu: str = "RTX 3090") -> str:
    return f"model: {MODEL}\ntarget: {{ gpu: {gpu} }}\nengine: {engine}\nworkload: {{ {LENGTHS}, {load} }}\n"


def searched(load: str, engine: str = "vllm") -> SearchResult:
    spec = parse_spec(text(load, engine))
    return search(spec, open_model(spec.model).ir)


def speed(ttft: float, tpot: float) -> SpeedEstimate:
    of = Quantity.exact
    return SpeedEstimate(of(ttft), of(tpot), of(1.0), of(1e3 / tpot), of(1.0))


@pytest.mark.parametrize(
    ("load", "wanted"),
    [
        ({"rate": 2.0}, 33),  # 2 a second of 0.5 s + 201 tokens at 57.5 ms: 24 in the mean, 1.645 times their root more
        ({"rate": 2.0, "at_once": 10}, 10),
        ({"rate": 2.0, "requests": 7}, 7),
        ({"rate": math.inf, "requests": 300}, 300),
        ({"rate": 1e-6}, 1),
    ],
)
def test_requests_in_flight_follow_from_their_rate_and_their_time(load: dict[str, float], wanted: int) -> None:
    asked = Workload(4096, None, 800, 201, **load)  # type: ignore[arg-type]
    assert in_flight(asked, speed(500.0, 57.5)) == wanted


@pytest.mark.parametrize("engine", ["vllm", "exllamav2"])
def test_a_rate_counts_its_requests_in_flight_in_capacity_batch_and_launch(engine: str) -> None:
    one, two = (searched(f"rate: {rate}/s", engine).chosen for rate in (0.5, 1))
    assert one is not None and two is not None and one.served is not None and one.served.e2e_ms is not None
    mean = 0.5 * one.served.e2e_ms.value / 1e3
    assert 1 < one.capacity.clients == math.ceil(mean + 1.645 * math.sqrt(mean)) < two.capacity.clients
    assert one.capacity.needed_bytes >= one.capacity.running * one.capacity.request_bytes
    made = plan(parse_spec(text("rate: 0.5/s", engine)))
    request = launch_request(made.document, one.ir, "x")
    assert request.workload.concurrency == made.document.decision.capacity.at_once > 1  # type: ignore[union-attr]
    assert any("in flight" in note for note in made.document.decision.notes)


def test_a_rate_that_cannot_be_held_is_told_as_that_with_how_many_are_served(optimize: Any) -> None:
    """No lack of memory: what does not fit waits, and the queue grows; enough cards serve it."""
    spec = parse_spec(text("rate: 50/s") + "goals: { ttft: 2 s }\n")
    result = search(spec, open_model(spec.model).ir)
    assert result.chosen is None
    nearest = result.nearest()[0]
    assert [reason.code for reason in nearest.reasons] == ["rate_missed"]
    assert "50 requests a second arrive" in nearest.reasons[0].message and "queue grows" in nearest.reasons[0].message
    more = plan(spec).document
    assert more.rejected[0].reasons[0].remedy is not None and "rate:" in more.rejected[0].reasons[0].remedy
    cards = int(next(other.change for other in more.alternatives if "cards" in other.change).split()[0])
    larger = patched(spec, {"target": {"count": cards}})
    served = search(larger, open_model(spec.model).ir).chosen
    assert served is not None and served.speed is not None and served.speed.capacity_req_s is not None
    assert served.speed.capacity_req_s.value > 50
    lengths = ("--context", 4096, "--input-tokens", 800, "--output-tokens", 201)
    for rate, code in ((0.5, 0), (50, 3)):
        found, out, _ = optimize(
            "check", "--model", MODEL, "--gpu", "RTX 3090", *lengths, "--request-rate", rate, "--ttft", "60s", "--json"
        )
        document = json.loads(out)
        assert (found, document["fits"], document["meets"]) == (code, True, code == 0)
        assert [goal["name"] for goal in document["goals"]] == ["rate", "TTFT"]
        waits = document["goals"][1]
        assert (waits["met"], waits["predicted"]["value"] is None) == (code == 0, code == 3)
        assert len(document["reasons"]) == (1 if code else 0)


def test_a_rate_that_is_held_is_among_the_goals_of_the_plan() -> None:
    made = plan(parse_spec(text("rate: 0.5/s") + "goals: { ttft: 20 s }\n")).document
    assert [(goal.name, goal.wanted) for goal in made.decision.goals] == [("rate", 0.5), ("TTFT", 20_000.0)]


def test_two_figures_that_differ_never_read_alike() -> None:
    """`needs 1.00 GiB, 1.00 GiB is left` tells nobody what is short."""
    first, second = apart(1.0 * (1 << 30), 1.0 * (1 << 30) - 4096, "B")
    assert first != second
    engine, gpu, ir = find_engine("vllm"), find_gpu("L4"), open_model(MODEL).ir
    room = engine.memory(ir, gpu, Settings(), Workload(4096, 1, 800, 200)).memory.kv_cache.value
    longest = int(room / engine.memory(ir, gpu, Settings(), Workload(4096, 1, 800, 200)).kv.bytes_per_token)
    for context in range(longest - 64, longest + 64, 16):
        for reason in engine.memory(ir, gpu, Settings(), Workload(context, 1, 800, 200)).reasons:
            sizes = re.findall(r"[\d.]+ GiB", reason.message)
            assert len(set(sizes)) == len(sizes), reason.message


@pytest.mark.parametrize(
    ("card", "prompt", "answer", "within"),
    [
        ("RTX 3090", 800, 201, 0.1),
        ("H100 SXM", 500, 100, 0.15),  # 3 s of 50 are the host's, which takes in 3,000 requests
        ("L4", 3000, 300, 0.2),
    ],
)
def test_the_most_that_is_served_is_what_a_simulated_burst_is_served_at(
    card: str, prompt: int, answer: int, within: float
) -> None:
    engine, ir, gpu, settings = find_engine("vllm"), open_model(MODEL).ir, find_gpu(card), Settings()
    load = Workload(4096, 64, prompt, answer, rate=1.0)
    memory = engine.memory(ir, gpu, settings, load)
    most = engine.speed(ir, gpu, settings, load, memory).capacity_req_s
    burst = engine.served(ir, gpu, settings, replace(load, rate=math.inf, requests=3000), memory).requests_s
    assert most is not None and burst is not None
    assert most.value == pytest.approx(burst.value, rel=within)


def test_how_busy_a_rate_keeps_an_engine_is_little_s_law() -> None:
    from targets.speed.closed_loop import closed_loop
    from targets.speed.estimate import asked

    engine, ir, gpu, settings = find_engine("vllm"), open_model(MODEL).ir, find_gpu("RTX 3090"), Settings()
    for rate in (0.1, 0.5, 1.0, 2.0, 2.5):
        load = Workload(4096, 16, 800, 201, rate=rate)
        question = asked(engine, ir, gpu, settings, load, engine.memory(ir, gpu, settings, load))
        means = closed_loop(question.run.step, question.loop)
        kept = rate * (means.ttft_s + 200 * means.tpot_s)
        assert question.loop.clients == pytest.approx(max(1.0, kept), rel=0.03)


@pytest.mark.parametrize(("engine", "card"), [("vllm", "H100 SXM"), ("exllamav2", "RTX 4090")])
def test_a_context_beyond_the_model_s_is_refused_by_plan_and_check(engine: str, card: str, optimize: Any) -> None:
    spec = parse_spec(
        f"model: {MODEL}\ntarget: {{ gpu: {card} }}\nengine: {engine}\nworkload: {{ context: 131072, concurrency: 1 }}\n"
    )
    made = plan(spec).document
    assert made.chosen is None and not made.alternatives
    reasons = made.rejected[0].reasons
    assert reasons[0].code == "context_beyond_model" and reasons[0].data == {
        "asked": 131072,
        "max_context": 32768,
        "rotary": True,
    }
    assert "32768" in (reasons[0].remedy or "") or reasons[1:]
    told = longer_context(reasons[0])
    assert told is not None and '"factor": 4.0' in told
    code, out, _ = optimize("check", "--model", MODEL, "--gpu", card, "--engine", engine, "--context", 131072, "--json")
    assert code == 3 and "context_beyond_model" in {reason["code"] for reason in json.loads(out)["reasons"]}


def test_more_cards_than_a_plan_takes_are_refused() -> None:
    with pytest.raises(InputError, match="100,000 cards are more than a plan takes"):
        parse_spec(f"model: {MODEL}\ntarget: {{ gpu: H100, count: 100000 }}\n")


def test_a_narrow_miss_is_said_with_the_band_that_it_is_inside_of(optimize: Any, tmp_path: Path) -> None:
    spec = text("concurrency: 4").replace(
        "engine: vllm", "engine: vllm\npasses: { quantize: forbid, kv_cache: [auto] }"
    )
    own = search(parse_spec(spec), open_model(MODEL).ir).chosen
    assert own is not None and own.speed is not None
    wanted = 1.02 * own.speed.decode_tok_s_per_request.value
    file = tmp_path / "near.yaml"
    file.write_text(f"{spec}goals: {{ decode: {wanted:.3f} tok/s }}\n")
    code, out, _ = optimize("plan", file, "--json")
    (goal,) = json.loads(out)["chosen"]["goals"]
    assert (
        code == 0 and not goal["met"] and 0 < goal["missed_by"] < goal["band"] == pytest.approx(0.05 * wanted, rel=1e-3)
    )
    _, said, _ = optimize("plan", file)
    assert "misses by" in said and "inside the band of" in said and "by less than the band" in " ".join(said.split())


def test_clients_and_a_rate_take_each_other_away_in_a_changed_spec() -> None:
    spec = parse_spec(text("concurrency: 8"))
    arriving = patched(spec, {"workload": {"rate": "2/s"}})
    assert arriving.workload.asked.concurrency is None and arriving.workload.asked.rate == 2.0
    waiting = patched(arriving, {"workload": {"concurrency": 8}})
    assert waiting.workload.asked.concurrency == 8 and waiting.workload.asked.rate is None


def test_a_goal_beyond_what_arrives_is_refused() -> None:
    with pytest.raises(InputError, match="2 requests a second of 201 tokens each are 402 tok/s"):
        parse_spec(text("rate: 2/s") + "goals: { throughput: 500 tok/s }")
    assert parse_spec(text("rate: 2/s") + "goals: { throughput: 400 tok/s }").workload.asked.concurrency is None


@pytest.mark.parametrize(("load", "sequences"), [("concurrency: 400", 16), ("rate: 1/s", None)])
def test_check_and_plan_need_the_same_cache(load: str, sequences: int | None) -> None:
    spec = parse_spec(
        text(load).replace("engine: vllm", f"engine: {{ name: vllm, settings: {{ max_num_seqs: {sequences or 64} }} }}")
    )
    chosen = search(spec, open_model(spec.model).ir).chosen
    assert chosen is not None
    asked = spec.workload.asked
    answer = check(
        MODEL, "RTX 3090", settings=replace(chosen.candidate.settings, max_num_seqs=sequences or 64), context=4096,
        concurrency=asked.concurrency, input_tokens=800, output_tokens=201,
        load=Load(rate=asked.rate), kv_cache_dtype=chosen.ir.kv_cache.dtype,
        weights=None if chosen.candidate.weights == "as-is" else chosen.candidate.weights,
    )  # fmt: skip
    used = answer.outcome.used
    assert used is not None and used.request_bytes == chosen.capacity.request_bytes
    assert used.running == pytest.approx(chosen.capacity.running, abs=sequences is None and 12)
    assert answer.fits


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--context", "1000", "--input-tokens", "900", "--output-tokens", "200"], "900 + 200 tokens exceed the context of 1,000"),
        (["--burstiness", "0.5"], "--burstiness is of requests that arrive at a rate"),
        (["--ramp-up-strategy", "linear", "--ramp-up-start-rps", "1"], "a ramp takes --ramp-up-strategy, --ramp-up-start-rps and"),
        (["--ramp-up-strategy", "steep", "--ramp-up-start-rps", "1", "--ramp-up-end-rps", "9"], "'steep' is not known"),
        (["--ramp-up-strategy", "linear", "--ramp-up-start-rps", "9", "--ramp-up-end-rps", "1"], "from 9 requests a second to 1 a second"),
        (["--ramp-up-strategy", "linear", "--request-rate", "4"], "both say how many requests come a second"),
        (["--concurrency-ramp-duration", "30", "--request-rate", "4"], "is of clients that wait for answers"),
    ],
)  # fmt: skip
def test_check_refuses_what_contradicts_itself(options: list[str], said: str) -> None:
    result = CliRunner().invoke(application(), ["check", "--model", MODEL, "--gpu", "L4", *options])
    assert result.exit_code != 0 and said in str(result.exception or result.output)


def test_limits_of_goodput_follow_each_other_as_vllm_takes_them() -> None:
    asked = [
        "check",
        "--model",
        MODEL,
        "--gpu",
        "L4",
        "--input-tokens",
        "500",
        "--output-tokens",
        "100",
        "--concurrency",
        "2",
        "--json",
    ]
    apart = CliRunner().invoke(application(), [*asked, "--goodput", "ttft:900", "--goodput", "tpot:90"])
    together = CliRunner().invoke(application(), [*asked, "--goodput", "ttft:900", "tpot:90"])
    assert apart.exit_code == together.exit_code == 0 and apart.output == together.output
    assert CliRunner().invoke(application(), [*asked, "ttft:900"]).exit_code != 0


PICTURES = """
model: {model}
target: {{ gpu: L40S }}
workload: {{ context: 16384, concurrency: 16, input_tokens: 300, output_tokens: 200{more} }}
"""


def test_pictures_count_in_input_cache_and_time_and_are_what_the_server_lets_in() -> None:
    more = ", images: { count: 2, tokens: 1300 }"
    seen, blind = (
        plan(parse_spec(PICTURES.format(model="Qwen/Qwen2.5-VL-7B-Instruct", more=each))) for each in (more, "")
    )
    with_them, without = seen.document.decision, blind.document.decision
    assert (
        seen.spec.workload.asked.input_tokens == 2900
        and without.capacity is not None
        and with_them.capacity is not None
    )
    assert with_them.capacity.needed_bytes > 4 * without.capacity.at_once * without.capacity.request_bytes
    assert with_them.speed is not None and without.speed is not None
    assert with_them.speed.ttft_ms.value > 2 * without.speed.ttft_ms.value
    assert seen.result.chosen is not None
    arguments = launch(seen.document, seen.result.chosen.ir, "x").files[0].data
    assert arguments["limit-mm-per-prompt"] == {"image": 2, "video": 0}
    with pytest.raises(InputError, match="has no vision encoder"):
        plan(parse_spec(PICTURES.format(model="Qwen/Qwen2.5-7B-Instruct", more=more)))


def test_a_longer_encoding_of_pictures_delays_the_first_token() -> None:
    ir, gpu, engine = open_model("Qwen/Qwen2.5-VL-7B-Instruct").ir, find_gpu("L40S"), find_engine("vllm")
    few, many = (Workload(16384, 1, 3000, 200, pictures=n, picture_tokens=1300) for n in (0, 2))
    first = [
        engine.speed(ir, gpu, Settings(), load, engine.memory(ir, gpu, Settings(), load)).ttft_ms.value
        for load in (few, many)
    ]
    assert first[1] > first[0] + 20


def test_lengths_further_apart_than_any_are_refused_and_than_simulated_ones_are_said() -> None:
    with pytest.raises(InputError, match="the five longest of a hundred"):
        parse_spec(text("concurrency: 2").replace("800", "{ mean: 50, p95: 2000 }"))
    made = plan(parse_spec(text("concurrency: 2").replace("800", "{ mean: 400, p95: 2000 }")))
    assert any(
        "the load is simulated with 1,547, the cache counted by 2,000" in note for note in made.document.decision.notes
    )


@pytest.mark.parametrize(
    ("gpu", "load"),
    [("{ gpu: RTX 3090, reserve: 1.5 GiB }", "concurrency: 4"), ("{ gpu: A100 SXM4 80GB }", "concurrency: auto")],
    ids=["a reserve", "clients left open"],
)
@pytest.mark.parametrize("engine", ["vllm", "exllamav2"])
def test_a_check_of_a_plan_has_the_plans_figures(
    gpu: str, load: str, engine: str, optimize: Any, tmp_path: Path
) -> None:
    spec, made = tmp_path / "spec.yaml", tmp_path / "made.plan.json"
    spec.write_text(
        f"model: {MODEL}\ntarget: {gpu}\nengine: {engine}\nworkload: {{ {LENGTHS}, {load} }}\ngoals: {{ prefer: throughput }}\n"
    )
    assert optimize("plan", spec, "-o", made)[0] == 0
    chosen = json.loads(made.read_text())["chosen"]
    code, out, _ = optimize("check", made, "--json")
    found = json.loads(out)
    assert code == 0
    assert (
        found["memory"]["budget"] == chosen["memory"]["budget"]
        and found["memory"]["total"] == chosen["memory"]["total"]
    )
    for figure in ("ttft_ms", "tpot_ms", "throughput_tok_s"):
        assert found["speed"][figure]["value"] == pytest.approx(chosen["speed"][figure]["value"]), figure


@pytest.mark.parametrize("gpu", ["H100", "H200"])
def test_a_plan_and_a_check_agree_on_the_memory_of_pipeline_stages(gpu: str) -> None:
    spec = parse_spec(
        f"model: deepseek-ai/DeepSeek-R1\ntarget: {{ gpu: {gpu}, count: 8 }}\nengine: vllm\n"
        "workload: { context: 32768, concurrency: 4, input_tokens: 8000, output_tokens: 400 }\ngoals: { decode: 900 tok/s }\n"
    )
    ir = open_model(spec.model).ir
    staged = [
        v for v in search(spec, ir).rejected if v.candidate.settings.parallel.pp > 1 and v.candidate.published is None
    ]
    assert staged
    for verdict in staged:
        candidate = verdict.candidate
        cache = "fp8" if candidate.passes else "auto"
        question = Question(
            ir,
            find_gpu(gpu),
            candidate.engine,
            candidate.settings,
            32768,
            verdict.capacity.clients,
            8000,
            400,
            kv_cache_dtype=cache,
        )
        assert question.outcome().memory.memory.weights == verdict.memory.memory.weights, candidate.label
        assert question.outcome().used == verdict.capacity, candidate.label


def test_those_that_do_not_wait_are_as_many_as_surely_fit_where_the_engine_is_told_their_number() -> None:
    """A T4 of 14 GiB and 14 B weights: graphs and sampler of 256 requests leave a cache for four, those of nine one for nine. More of the
    card, and so more at once, answers those that wait sooner.
    """
    spec = parse_spec(
        "model: Qwen/Qwen2.5-14B-Instruct\ntarget: { gpu: T4 }\nengine: vllm\n"
        "workload: { context: 4096, concurrency: 32, input_tokens: 800, output_tokens: 200 }\n"
        "passes: { quantize: { formats: [w4a16-g32] } }\n"
    )
    chosen = search(spec, open_model(spec.model).ir).chosen
    assert chosen is not None and chosen.candidate.settings.gpu_memory_utilization == 0.95
    gpu, engine, told = find_gpu("T4"), find_engine("vllm"), chosen.candidate.settings
    workload = workload_of(spec)
    one_more = replace(told, max_num_seqs=(told.max_num_seqs or 0) + 1)
    assert running_at_once(engine.memory(chosen.ir, gpu, told, workload)) >= (told.max_num_seqs or 0) > 4
    assert running_at_once(engine.memory(chosen.ir, gpu, one_more, workload)) <= (told.max_num_seqs or 0)


def test_a_check_with_goals_says_how_many_users_keep_them_and_agrees_with_what_it_was_asked() -> None:
    """Of several users; for one alone nothing is searched."""
    asked = [
        "check",
        "--model",
        "llama-3.1-8b",
        "--gpu",
        "H100 SXM",
        "--input-tokens",
        "512",
        "--json",
        "--ttft",
        "300ms",
    ]

    def speed_of(*options: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(CliRunner().invoke(application(), [*asked, *options]).output)["speed"]
        return found

    several = speed_of("--max-concurrency", "16")
    assert several["ttft_ms"]["value"] < 300 and several["most_clients"] >= 16
    assert several["goodput_req_s"]["value"] > 0
    assert "most_clients" not in speed_of()
