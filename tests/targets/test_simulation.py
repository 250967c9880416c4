"""The simulation of a load: what is always true of it, its step times against the step model, and the figures of real runs."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest

from passes.ir.sources import open_model
from targets.engines.engine import KVEstimate, Parallel, Settings, SpeedEstimate, find_engine
from targets.gpu import find_gpu
from targets.quantity import Quantity
from targets.simulation.arrivals import Arrivals, burst, closed_loop, poisson
from targets.simulation.exllama import Generator
from targets.simulation.highest import highest_rate, most_clients
from targets.simulation.lengths import lognormal, spread
from targets.simulation.metrics import Distribution, figures, goodput
from targets.simulation.scheduler import Batch, Besides, Cache, Request, Rules, Scheduler
from targets.simulation.serving import cache_of, lengths_told, load_of
from targets.simulation.simulate import Host, Run, simulate
from targets.simulation.step_times import StepTimes
from targets.speed.estimate import asked
from targets.speed.step import Step, padded
from targets.workload import RampUp, Workload

_LENGTHS = list(zip(spread(500, 0.8, 150), spread(150, 0.9, 150, seed=1), strict=True))
_LOADS = {
    "closed": closed_loop(24, 150), "ramp": closed_loop(24, 150, 3.0), "burst": burst(150), "rate": poisson(8, 150),
    "capped": poisson(50, 150, 0.3, at_once=9),
}  # fmt: skip


def _step_s(batch: Batch) -> float:
    """A made-up card: linear in all that a step holds, so that runs of steps told as one take what they take one by one."""
    return 0.01 + 1e-4 * batch.decode + 1e-8 * batch.context + 1e-5 * sum(tokens for _, tokens, _ in batch.chunks)


class _StepByStep(Scheduler):
    """The scheduler without its jumps."""

    def quiet(self) -> tuple[int, int, int]:
        return 0, 0, 0


def _run(load: Arrivals, blocks: int, lag: int, kind: type[Scheduler] = Scheduler) -> tuple[Run, Scheduler]:
    scheduler = kind(Rules(2048, 64, lag), Cache(blocks))
    return simulate(_step_s, scheduler, load, _LENGTHS, Host(0.02, 0.001, 1e-6)), scheduler


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("blocks", [700, 100_000])
@pytest.mark.parametrize("load", _LOADS)
def test_steps_told_as_one_take_what_they_take_one_by_one(load: str, blocks: int, lag: int) -> None:
    jumps, _ = _run(_LOADS[load], blocks, lag)
    single, _ = _run(_LOADS[load], blocks, lag, _StepByStep)
    assert jumps.steps == single.steps and jumps.preemptions == single.preemptions
    assert jumps.done == pytest.approx(single.done, rel=1e-6)
    assert jumps.first == pytest.approx(single.first, rel=1e-6)
    assert jumps.full_s == pytest.approx(single.full_s, rel=1e-3)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("load", _LOADS)
def test_tokens_are_conserved_and_all_blocks_come_back(load: str, lag: int) -> None:
    run, scheduler = _run(_LOADS[load], 900, lag)
    for _ in range(lag + 1):  # what ended is settled
        scheduler.compose()
    assert scheduler.free == 900 and scheduler.idle
    written = sum(count for _, count in run.gaps)
    assert written == sum(output - 1 for _, output in _LENGTHS)
    assert all(sent < first <= done for sent, first, done in zip(run.sent, run.first, run.done, strict=True))


def test_a_request_is_sent_when_it_is_due_and_a_client_is_free() -> None:
    run, _ = _run(_LOADS["capped"], 100_000, 1)
    times = sorted([(at, 1) for at in run.sent] + [(at, -1) for at in run.done], key=lambda event: (event[0], event[1]))
    out = most = 0
    for _, change in times:
        out += change
        most = max(most, out)
    assert most == 9
    assert all(sent >= due for sent, due in zip(run.sent, _LOADS["capped"].due, strict=True))


def test_one_client_waits_for_the_host_and_its_own_steps_only() -> None:
    run = simulate(
        lambda _: 0.01,
        Scheduler(Rules(2048, 64), Cache(1000)),
        closed_loop(1, 3),
        [(500, 11)] * 3,
        Host(0.02, 0.001, 1e-6),
    )
    seen = figures(run)
    assert seen.ttft.mean == pytest.approx(0.0315) and seen.ttft.percentiles[99] == pytest.approx(0.0315)
    assert seen.tpot is not None and seen.tpot.mean == pytest.approx(0.01)
    assert seen.itl is not None and seen.itl.percentiles[95] == pytest.approx(0.01)
    assert seen.throughput == pytest.approx(11 / 0.1315) and seen.full == 0.0 and seen.preemptions == 0
    assert goodput(run, [("ttft", 40.0)]) == pytest.approx(seen.requests_s)
    assert goodput(run, [("ttft", 40.0), ("e2e", 100.0)]) == 0.0


def test_a_shared_prefix_is_computed_and_kept_once() -> None:
    def tokens(prefix: int) -> tuple[int, int]:
        computed: list[int] = []

        def step_s(batch: Batch) -> float:
            computed.append(sum(tokens for _, tokens, _ in batch.chunks))
            return 1.0

        scheduler = Scheduler(Rules(8192, 64, 0), Cache(1000, prefix=prefix))
        run = simulate(step_s, scheduler, burst(10), [(320, 5)] * 10)
        return sum(computed), run.steps

    assert tokens(0) == (3200, 5)
    assert tokens(160) == (320 + 9 * 160, 5)


def test_a_request_that_never_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="never fits"):
        Scheduler(Rules(2048, 64), Cache(10)).add(Request(0, 150, 20))


def test_a_rate_is_kept_and_its_gaps_are_as_clustered_as_asked() -> None:
    for burstiness, variation in ((1.0, 1.0), (0.25, 2.0), (100.0, 0.1)):
        due = poisson(4.0, 4000, burstiness).due
        gaps = [b - a for a, b in pairwise(due)]
        mean = fmean(gaps)
        assert due[-1] == pytest.approx(1000)
        assert math.sqrt(fmean([(gap / mean - 1) ** 2 for gap in gaps])) == pytest.approx(variation, rel=0.1)
    assert poisson(4.0, 10).due == poisson(4.0, 10).due


def test_a_rate_grows_as_vllm_lets_it() -> None:
    """Each gap is drawn at the rate that `benchmarks/serve.py:_get_current_request_rate` gives that request, and none is scaled after."""
    for strategy, middle in (("linear", 5.5), ("exponential", math.sqrt(10))):
        ramp = RampUp(strategy, 1.0)
        assert [ramp.rate(share, 10.0) for share in (0.0, 0.5, 1.0)] == pytest.approx([1.0, middle, 10.0])
        due = poisson(10.0, 4000, 100.0, ramp_up=ramp).due
        assert due[-1] == pytest.approx(sum(1 / ramp.rate(number / 3999, 10.0) for number in range(4000)), rel=0.01)
        assert due[100] / 100 == pytest.approx(1.0, rel=0.1) and (due[-1] - due[-101]) / 100 == pytest.approx(
            0.1, rel=0.1
        )
    each = load_of(Workload(4096, None, 512, 128, rate=8.0, ramp_up=RampUp("linear", 2.0)), 2).arrivals.due
    assert each[-1] == pytest.approx(500 * math.log(4) / 3, rel=0.1), "a replica has its share of the rate at both ends"


def test_clients_that_come_one_after_the_other() -> None:
    """The first at once, the last after the time that is told, each with its next request as soon as it is answered; who is answered before
    the last one is there does not wait for it.
    """
    load, alike = closed_loop(5, 20, 8.0), [(100, 11)] * 20
    run = simulate(lambda _: 0.05, Scheduler(Rules(2048, 64), Cache(1000)), load, alike, Host())
    firsts = [at for at in run.sent if any(at == start for start in load.starts)]
    assert load.starts == [0.0, 2.0, 4.0, 6.0, 8.0] and load.timed and not closed_loop(5, 20).timed
    assert firsts[:3] == [0.0, 2.0, 4.0] and run.sent == sorted(run.sent)
    assert run.sent[1] == pytest.approx(run.done[0]) and run.sent[1] < 2.0
    together = simulate(lambda _: 0.05, Scheduler(Rules(2048, 64), Cache(1000)), closed_loop(5, 20), alike, Host())
    assert max(run.sent) > max(together.sent)


def test_lengths_have_the_mean_and_the_percentile_that_are_asked() -> None:
    drawn = sorted(lognormal(215, 800, 20_000))
    assert fmean(drawn) == pytest.approx(215, rel=0.03)
    assert drawn[19_000] == pytest.approx(800, rel=0.05)
    assert max(lognormal(215, 800, 1000, most=900)) == 900
    assert set(lognormal(100, 100, 10)) == {100}


def test_percentiles() -> None:
    told = Distribution.of([float(n) for n in range(101)])
    assert told.mean == 50 and told.percentiles == {50: 50, 90: 90, 95: 95, 99: 99}
    weighted = Distribution.weighted([(1.0, 94), (2.0, 4), (9.0, 2)])
    assert weighted.mean == pytest.approx(1.2) and weighted.percentiles == {50: 1, 90: 1, 95: 2, 99: 9}
    assert weighted.statistic("mean") == weighted.mean and weighted.statistic("p95") == 2


def test_the_pool_is_that_of_the_memory_estimate() -> None:
    work = Workload(4096, shared_prefix=64)

    def kv(per_token: float, per_sequence: int, at_once: float, states: int = 0) -> KVEstimate:
        return KVEstimate(
            per_token, per_sequence, Quantity.exact(0), Quantity.exact(at_once), 4096, 500.0 * (states > 0), 128, states
        )  # fmt: skip

    assert cache_of(kv(1000, 4096 * 1000, 10.0), work, 16) == Cache(2559, 16, Besides(0, 0.0, 128), 64, True)
    states = cache_of(kv(1000, 4096 * 1000 + 320_000, 10.0, 320_000), work, 16)
    assert states == Cache(2759, 16, Besides(20, 1 / 32, 128), 64)
    assert states.besides.blocks(64) == 22 and states.besides.blocks(4000) == 24
    assert cache_of(kv(1000, 4096 * 1000, 0.5), work, 16).blocks == 256  # one longest request
    assert cache_of(kv(0, 5000, 7.9), work, 16).blocks == 7
    assert cache_of(kv(0, 0, math.inf), work, 16).blocks > 1e9


def test_loads_of_a_workload() -> None:
    work = Workload(4096, 8, 500, 100)
    assert load_of(work).arrivals == closed_loop(8, 80) and len(set(load_of(work).lengths)) > 40
    assert load_of(replace(work, requests=20)).lengths == [(500, 100)] * 20
    assert load_of(replace(work, requests=20), replicas=2).arrivals == closed_loop(4, 10)
    assert load_of(replace(work, rate=math.inf, requests=30, at_once=7)).arrivals == burst(30, 7)
    assert len(load_of(replace(work, rate=2.0)).lengths) == 1000
    assert load_of(replace(work, trace=((0.0, 10, 5), (1.5, 20, 6)))).lengths == [(10, 5), (20, 6)]
    chats = load_of(replace(work, requests=500, input_p95=1500)).lengths
    assert fmean(prompt for prompt, _ in chats) == pytest.approx(500, rel=0.15) and {out for _, out in chats} == {100}


def _served(model: str, workload: Workload, version: str = "0.26", **settings: object) -> SpeedEstimate:
    engine, gpu = find_engine("vllm"), find_gpu("H100 SXM")
    chosen = Settings(version=version, **settings)  # type: ignore[arg-type]
    ir = open_model(model).ir
    return engine.served(ir, gpu, chosen, workload, engine.memory(ir, gpu, chosen, workload))


@pytest.mark.parametrize("model", ["meta-llama/Llama-3.1-8B", "openai/gpt-oss-120b", "google/gemma-3-27b-it"])
def test_step_times_are_those_of_the_step_model(model: str) -> None:
    engine, gpu, ir = find_engine("vllm"), find_gpu("H100 SXM"), open_model(model).ir
    work, settings = Workload(8192, 64), Settings()
    question = asked(engine, ir, gpu, settings, work, engine.memory(ir, gpu, settings, work))
    times, chance = StepTimes(question.run.step, 2.0), random.Random(3)
    for _ in range(300):
        decode, chunk = chance.choice([0, 1, chance.randrange(1000)]), chance.choice([0, chance.randrange(1, 8192)])
        if not decode + chunk:
            continue
        context, before = decode * chance.randrange(4000), chance.randrange(3000)
        batch = Batch(decode, context)
        batch.chunks += [(Request(0, 9000, 1), chunk, before)] if chunk else []
        whole = Step(decode, context / max(decode, 1), chunk, before + (chunk + 1) / 2, bool(chunk), 2.0)
        assert times(batch) == pytest.approx(question.run.step(whole), rel=2e-3)


def test_a_real_card_under_load() -> None:
    """An H100 with vLLM 0.26, Llama 3.1 8B's shape in bf16, 512 + 128 tokens, all clients at once (measured; docs/load.md)."""
    for clients, requests, ttft, tpot, rate in ((16, 64, 190, 7.51, 1786), (64, 192, 482, 11.30, 4242)):
        told = _served("meta-llama/Llama-3.1-8B", Workload(4096, clients, 512, 128, requests=requests))
        assert told.ttft_ms.value == pytest.approx(ttft, rel=0.2)
        assert told.tpot_ms.value == pytest.approx(tpot, rel=0.08)
        assert told.throughput_tok_s.value == pytest.approx(rate, rel=0.08)
        assert told.requests == requests and told.preemptions == 0 and told.cache_full == 0
        assert told.ttft_p95_ms is not None and told.ttft_p95_ms.low <= told.ttft_p95_ms.value <= told.ttft_p95_ms.high


def test_what_arrives_by_chance_is_as_long_as_chats_as_far_as_the_context_leaves_room() -> None:
    """Means are kept. In a tight context long answers have short prompts, as far as there are some."""
    roomy = load_of(Workload(8192, None, 200, 200, requests=500, rate=4.0)).lengths
    tight = load_of(Workload(460, None, 200, 200, requests=500, rate=4.0)).lengths
    none = load_of(Workload(401, None, 200, 200, requests=500, rate=4.0)).lengths
    for lengths, context in ((roomy, 8192), (tight, 460), (none, 401)):
        assert max(prompt + answer for prompt, answer in lengths) <= context
        for told in zip(*lengths, strict=True):
            assert fmean(told) == pytest.approx(200, rel=0.01) and max(told) <= 7 * 200
    assert max(answer for _, answer in roomy) > 3 * 200 and max(answer for _, answer in tight) > 2 * 200
    assert load_of(Workload(8192, 4, 200, 200, requests=8)).lengths == [(200, 200)] * 8


def test_chats_are_as_sharegpt_s_are() -> None:
    """A third of answers has a few words, and the longest of a thousand seven times the mean: what a mean over requests weighs alike."""
    lengths = load_of(Workload(8192, None, 215, 197, requests=1000, rate=math.inf)).lengths
    for told, mean, third, median, p95 in zip(
        zip(*lengths, strict=True), (215, 197), (0.15, 0.2), (0.64, 0.55), (3.04, 3.32), strict=True
    ):
        ordered = sorted(told)
        assert fmean(ordered) == pytest.approx(mean, rel=0.01)
        assert ordered[333] < third * mean
        assert ordered[500] == pytest.approx(median * mean, rel=0.05) and ordered[950] == pytest.approx(
            p95 * mean, rel=0.05
        )


def test_the_host_takes_turns_between_requests_that_come_together() -> None:
    """Of one second a request: two at once are both through after two; one that comes in between waits for its share only."""

    def first(load: Arrivals) -> list[float]:
        scheduler = Scheduler(Rules(2048, 64), Cache(1000))
        return simulate(lambda _: 1e-5, scheduler, load, [(1, 1)] * len(load.due), Host(request=1.0)).first

    assert first(burst(2)) == pytest.approx([2.0, 2.0], abs=1e-3)
    # the first is half done when the second comes: each has half of the time then
    assert first(Arrivals([0.0, 0.5, 9.0])) == pytest.approx([1.5, 2.0, 10.0], abs=1e-3)


def test_a_closed_loop_that_nobody_describes_may_stay_in_step() -> None:
    """Clients whose requests are equally long are all read at once in every round: the interval holds that run."""
    unsaid = _served("meta-llama/Llama-3.1-8B", Workload(4096, 64, 512, 128)).ttft_p50_ms
    in_step = _served("meta-llama/Llama-3.1-8B", Workload(4096, 64, 512, 128, requests=192)).ttft_p50_ms
    assert unsaid is not None and in_step is not None
    assert unsaid.value < 0.6 * in_step.value < in_step.value < unsaid.high


def test_a_decoding_batch_takes_as_long_as_the_cuda_graph_it_is_padded_to() -> None:
    assert [padded(rows, 512) for rows in (1, 3, 5, 12, 16, 255, 257, 512, 513)] == [
        1,
        4,
        8,
        16,
        16,
        256,
        272,
        512,
        513,
    ]
    assert padded(12, 0) == 12
    engine, gpu, ir = find_engine("vllm"), find_gpu("H100 SXM"), open_model("Qwen/Qwen3-30B-A3B").ir
    work = Workload(8192, 64)
    question = asked(engine, ir, gpu, Settings(), work, engine.memory(ir, gpu, Settings(), work))
    steps = [question.run.stage(Step(rows, 1000.0, cache_bytes=2.0)) for rows in (16, 17, 23, 24)]
    assert steps[1] - steps[0] > 10 * (steps[3] - steps[2]) > 0


def test_a_rate_that_is_kept_up_with_and_one_that_is_not() -> None:
    slow = _served("meta-llama/Llama-3.1-8B", Workload(4096, None, 512, 128, rate=2.0))
    flood = _served("meta-llama/Llama-3.1-8B", Workload(4096, None, 512, 128, rate=200.0))
    assert slow.requests_s is not None and slow.requests_s.value == pytest.approx(2.0, rel=0.02)
    assert flood.requests_s is not None and flood.requests_s.value < 100
    assert slow.ttft_ms.value < 100 < 2000 < flood.ttft_ms.value


def test_a_cache_that_is_short_is_seen() -> None:
    short = _served(
        "meta-llama/Llama-3.1-8B", Workload(4096, 64, 512, 512, requests=192), kv_cache_memory_bytes=2 << 30
    )
    assert short.preemptions and short.cache_full and short.cache_full > 0.2


def test_a_thousand_requests_ask_the_step_model_seldom() -> None:
    """Of 200,000 tokens; `python -m benchmarks.plan_speed` tells seconds."""
    engine, gpu, ir = find_engine("vllm"), find_gpu("H100 SXM"), open_model("meta-llama/Llama-3.1-8B").ir
    work = Workload(4096, 64, 512, 200, requests=1000)
    question = asked(engine, ir, gpu, Settings(), work, engine.memory(ir, gpu, Settings(), work))
    calls = 0

    def step(one_step: Step) -> float:
        nonlocal calls
        calls += 1
        return question.run.stage(one_step)

    lengths = list(zip(spread(512, 0.2, 1000), spread(200, 0.2, 1000, seed=1), strict=True))
    simulate(StepTimes(step, 2.0), Scheduler(Rules(8192, 1024), Cache(28_000)), closed_loop(64, 1000), lengths)
    assert calls < 5000


def test_stages_share_requests_once() -> None:
    engine, gpu, ir = find_engine("vllm"), find_gpu("H100 SXM"), open_model("meta-llama/Llama-3.1-8B").ir
    for stages in (2, 4):
        settings = Settings(parallel=Parallel(pp=stages))
        work = Workload(4096, 256, 512, 128)
        question = asked(engine, ir, gpu, settings, work, engine.memory(ir, gpu, settings, work))
        times = StepTimes(question.run.stage, 2.0, stages)
        whole = question.run.step(Step(256, 1000.0, 0, 0.0, False, 2.0))
        assert times(Batch(256, 256_000)) == pytest.approx(whole, rel=0.02)


def test_no_request_is_longer_than_the_context() -> None:
    for workload in (Workload(40_000, 4, 39_800, 200), Workload(4096, 8, 1000, 500, input_p95=3900, output_p95=2000)):
        assert all(prompt + answer <= workload.context for prompt, answer in load_of(workload).lengths)


def test_exllama_reads_prompts_in_passes_of_their_own_and_reserves_whole_answers() -> None:
    def run(
        pages: int, lengths: list[tuple[int, int]], sequences: int = 8
    ) -> tuple[Run, list[tuple[int, list[int]]], Generator]:
        seen: list[tuple[int, list[int]]] = []

        def step_s(batch: Batch) -> float:
            seen.append((batch.decode, [tokens for _, tokens, _ in batch.chunks]))
            return 1.0

        generator = Generator(2048, sequences, Cache(pages, 256))
        return simulate(step_s, generator, burst(len(lengths)), lengths), seen, generator

    whole, seen, generator = run(100, [(3000, 3), (100, 3)])
    assert seen[:3] == [(1, [2048, 99]), (2, [951]), (2, [])] and generator.free == 100
    assert whole.first == [2.0, 1.0] and whole.done == [4.0, 3.0] and whole.preemptions == 0
    short, _, _ = run(
        16, [(2000, 40), (3000, 40), (400, 40)]
    )  # the second does not fit beside the first, the third does
    assert short.first == [1.0, 42.0, 1.0] and short.full_s > 0
    one_place, _, _ = run(100, [(100, 10)] * 3, sequences=1)
    assert one_place.done == [10.0, 20.0, 30.0] and one_place.full_s == 0


def test_exllama_is_simulated_too() -> None:
    engine, gpu, ir = find_engine("exllamav2"), find_gpu("RTX 4090"), open_model("meta-llama/Llama-3.1-8B").ir
    alone, four = (
        engine.served(ir, gpu, Settings(), work, engine.memory(ir, gpu, Settings(), work))
        for work in (Workload(4096, clients, 512, 64, requests=8) for clients in (1, 4))
    )
    assert alone.ttft_p95_ms is not None and four.ttft_p95_ms is not None
    assert (
        four.ttft_p95_ms.value > 2 * alone.ttft_p95_ms.value
        and four.throughput_tok_s.value > alone.throughput_tok_s.value
    )


@pytest.mark.parametrize("most", [0, 1, 2, 7, 41, 92, 1023, 1024])
@pytest.mark.parametrize("asked", [1, 16, 41, 64])
def test_the_most_clients_are_found_exactly(asked: int, most: int) -> None:
    tried = list[int]()

    def margin(count: int) -> float:
        tried.append(count)
        return math.log((most + 0.5) / count)

    assert most_clients(asked, margin) == most
    assert len(tried) <= 22


@pytest.mark.parametrize("most", [0.02, 0.7, 20.5, 300])
def test_the_highest_rate_is_found_to_half_a_percent_and_never_above(most: float) -> None:
    assert 0.994 * most <= highest_rate(4.0, lambda rate: most - rate) <= most + 5e-4


def test_a_sequence_holds_one_state_of_a_recurrent_layer_while_it_decodes() -> None:
    """The engine's own maximum, two with prefix caching, is what it prints; requests are admitted by what they hold."""
    model, card = "Qwen/Qwen3-Next-80B-A3B-Instruct", find_gpu("RTX PRO 6000 Blackwell Workstation")
    engine, ir = find_engine("vllm"), open_model(model).ir
    old, new = (
        engine.memory(ir, card, Settings(version=version), Workload(8192)).kv for version in ("0.26.0", "0.32.0")
    )
    assert new.bytes_per_sequence > old.bytes_per_sequence
    assert new.state_bytes == old.state_bytes > 0


def test_it_is_told_where_lengths_are_drawn_that_nobody_said() -> None:
    arrives = Workload(8192, None, 1000, 200, rate=20.0)
    told = lengths_told(arrives)
    assert told is not None and "{mean: 200, p95: 200}" in told and "vary as chats' do" in told
    assert lengths_told(replace(arrives, output_p95=200)) is None and lengths_told(replace(arrives, rate=None)) is None
    reads = replace(arrives, output_tokens=1)
    assert {answer for _, answer in load_of(reads).lengths} == {1} and "answers" not in (lengths_told(reads) or "")


def test_a_benchmark_of_recurrent_layers_may_begin_with_their_compilation() -> None:
    """Qwen3-Coder-Next in FP8 on an RTX PRO 6000, 16 clients, 80 requests (`serving_refs.jsonl`, emmy-108): mean 3,031, median 1,043 ms."""
    engine, gpu = find_engine("vllm"), find_gpu("RTX PRO 6000 Blackwell Workstation")
    ir = open_model("Qwen/Qwen3-Next-80B-A3B-Instruct-FP8").ir

    def first(requests: int | None, version: str | None = None) -> tuple[Quantity, Quantity]:
        settings, workload = (
            Settings(version=version, max_num_seqs=16),
            Workload(8064, 16, 4000, 4000, requests=requests),
        )
        told = engine.served(ir, gpu, settings, workload, engine.memory(ir, gpu, settings, workload))
        assert told.ttft_p50_ms is not None
        return told.ttft_ms, told.ttft_p50_ms

    mean, median = first(80)
    assert mean.value < 1200 and mean.low < 3031 < mean.high
    assert median.value == pytest.approx(1043, rel=0.1)
    assert first(80, "0.20.0")[0].high < 3031  # it compiles at its start
    assert first(None)[0].value < 1200
