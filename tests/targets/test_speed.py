"""The speed model's promises: physics holds in every direction, every card is answered, what is unknown says so."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.run_steps import run_steps
from passes.ir.model import KVCache, ModelIR
from passes.ir.sources import open_model
from passes.quantize.format_names import pass_named
from targets.engines.engine import KVEstimate, Parallel, Settings, SpeedEstimate, find_engine
from targets.gpu import Gpu, Network, all_gpus, find_gpu
from targets.quantity import Basis, Quantity
from targets.simulation.arrivals import closed_loop
from targets.simulation.lengths import spread
from targets.simulation.scheduler import Cache, Rules, Scheduler
from targets.simulation.simulate import simulate
from targets.simulation.step_times import StepTimes
from targets.speed.card import card_of, generation_of, wiring_of
from targets.speed.estimate import requests_held
from targets.speed.rates import Regime, engine_values, fitted_rates, with_templates
from targets.speed.step import Step, exchange_seconds, handing_on_seconds, step_seconds
from targets.speed.work import work_of
from targets.workload import Workload

ROOT = Path(__file__).parents[2]
ENGINES = ("vllm", "exllamav2", "exllamav3", "vllm-cpu")
ONE = Workload(context=4096, concurrency=1, input_tokens=512, output_tokens=256)


@pytest.fixture(autouse=True)
def _no_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("TIGHTFIT_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def qwen() -> ModelIR:
    return open_model("Qwen2.5-7B-Instruct").ir


@pytest.fixture(scope="module")
def experts() -> ModelIR:
    return open_model("Qwen/Qwen3-30B-A3B").ir


def w4(ir: ModelIR) -> ModelIR:
    scheme = pass_named("w4a16-g128")
    assert scheme is not None
    return scheme.rewrite(ir)


def speed(ir: ModelIR, gpu: str = "A100 SXM4 80GB", work: Workload = ONE, **settings: object) -> SpeedEstimate:
    return on(find_gpu(gpu), ir, work, Settings(**settings))  # type: ignore[arg-type]


def on(gpu: Gpu, ir: ModelIR, work: Workload, settings: Settings | None = None, engine: str = "vllm") -> SpeedEstimate:
    return find_engine(engine).estimate(ir, gpu, settings or Settings(), work).speed


def test_published_single_stream_speeds_are_met(qwen: ModelIR) -> None:
    """Qwen2.5-7B on A100, vLLM: the docs of Qwen2 print 80 tok/s in bf16 and 143 with 4-bit weights for its 7B."""
    short = Workload(context=2049, concurrency=1, input_tokens=1, output_tokens=2048)
    assert speed(qwen, work=short, version="0.6.3").decode_tok_s_per_request.value == pytest.approx(80, rel=0.12)
    assert speed(w4(qwen), work=short, version="0.6.3").decode_tok_s_per_request.value == pytest.approx(143, rel=0.15)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_card_of_the_catalog_is_answered(qwen: ModelIR, engine: str) -> None:
    for gpu in all_gpus():
        found = on(gpu, qwen, ONE, engine=engine)
        for quantity in (
            found.ttft_ms,
            found.tpot_ms,
            found.prefill_tok_s,
            found.decode_tok_s_per_request,
            found.throughput_tok_s,
        ):
            assert 0 < quantity.low < quantity.value < quantity.high < float("inf"), gpu.name


def test_without_cuda_graphs_no_step_is_shorter_than_the_launch_of_its_kernels(qwen: ModelIR, experts: ModelIR) -> None:
    """Qwen2.5 7B has 28 layers: 14 ms of launches, by the assumed time of one. What is slower than that anyway is as slow as before."""
    graphs, eager = speed(qwen, "H100 SXM").tpot_ms, speed(qwen, "H100 SXM", enforce_eager=True).tpot_ms
    assert graphs.value < 8 and eager.value == pytest.approx(14, rel=0.01)
    assert eager.basis is Basis.ASSUMED and eager.high / eager.low > graphs.high / graphs.low
    slow = speed(qwen, "L4", enforce_eager=True).tpot_ms.value
    assert slow == pytest.approx(speed(qwen, "L4").tpot_ms.value)
    routed = speed(experts, "H100 SXM", enforce_eager=True).tpot_ms.value
    assert routed == pytest.approx(2 * 0.5 * 48, rel=0.01)


def test_a_generation_without_data_is_wider_and_says_assumed(qwen: ModelIR) -> None:
    known, unknown = speed(qwen).tpot_ms, speed(qwen, "T4").tpot_ms
    assert known.basis is Basis.CALIBRATED and unknown.basis is Basis.ASSUMED
    assert unknown.high / unknown.low > known.high / known.low


def test_fewer_bits_decode_faster_but_not_prefill(qwen: ModelIR) -> None:
    dense, packed = speed(qwen), speed(w4(qwen))
    assert packed.decode_tok_s_per_request.value > 1.4 * dense.decode_tok_s_per_request.value
    assert packed.prefill_tok_s.value < dense.prefill_tok_s.value


def test_longer_contexts_and_more_clients_are_slower(qwen: ModelIR) -> None:
    def tpot(inputs: int, clients: int) -> float:
        return speed(qwen, work=Workload(32768, clients, inputs, 256)).tpot_ms.value

    assert tpot(512, 1) < tpot(8192, 1) < tpot(30000, 1)
    assert tpot(512, 1) < tpot(512, 8) < tpot(512, 64)


def test_throughput_grows_with_clients(qwen: ModelIR) -> None:
    figures = [speed(qwen, work=Workload(4096, c, 512, 256)).throughput_tok_s.value for c in (1, 4, 16, 64)]
    assert figures == sorted(figures)


def test_an_fp8_cache_makes_long_contexts_faster(qwen: ModelIR) -> None:
    long = Workload(32768, 16, 24000, 512)
    fp8 = replace(qwen, kv_cache=KVCache("fp8"))
    assert speed(fp8, work=long).tpot_ms.value < speed(qwen, work=long).tpot_ms.value


def test_more_cards_are_faster_but_less_than_in_proportion(qwen: ModelIR) -> None:
    one, four = speed(qwen).tpot_ms.value, speed(qwen, parallel=Parallel(tp=4)).tpot_ms.value
    assert one / 4 < four < one


def test_all_reduce_over_pcie_costs_more_than_over_nvlink(qwen: ModelIR) -> None:
    busy, cards = Workload(8192, 64, 4096, 256), {"parallel": Parallel(tp=2)}
    gpu = find_gpu("A100 SXM4 80GB")
    slow = replace(gpu, link_bytes_per_s=None)
    settings = Settings(**cards)
    assert on(slow, qwen, busy, settings).ttft_ms.value > 1.1 * on(gpu, qwen, busy, settings).ttft_ms.value


def test_through_the_hosts_memory_an_all_reduce_costs_more_than_over_the_bus(qwen: ModelIR) -> None:
    """GeForce cards have no access from card to card: 40 µs more each."""
    geforce, other = find_gpu("RTX 5090"), find_gpu("RTX PRO 6000 Blackwell Workstation")
    assert (wiring_of(geforce), wiring_of(other), wiring_of(find_gpu("H100 SXM"))) == ("staged", "pcie", "nvlink")
    links = fitted_rates("vllm", "12").rates.links
    staged, bus = (links[kind].all_reduce_s(8e3, 6e10, 2) for kind in ("staged", "pcie"))
    assert staged > 2 * bus
    assert links["pcie"].all_reduce_s(8e3, 6e10, 8) > 2 * links["pcie"].all_reduce_s(8e3, 6e10, 2)
    assert links["nvlink"].all_reduce_s(8e3, 4.5e11, 8) == links["nvlink"].all_reduce_s(8e3, 4.5e11, 2)


def test_a_geforce_card_is_told_by_its_halved_sums() -> None:
    found = {
        name: generation_of(find_gpu(name))
        for name in ("RTX 4090", "RTX 5090", "L4", "RTX PRO 6000 Blackwell Workstation")
    }
    assert list(found.values()) == ["8.9 geforce", "12 geforce", "8.9", "12"]


def test_few_tokens_at_small_experts_are_read_not_multiplied(experts: ModelIR) -> None:
    """Qwen3-30B-A3B in AWQ on an RTX 5090 at four clients, 4,000 + 4,000 tokens: 7.2 ms a token measured."""
    scheme = pass_named("awq-4-g128")
    assert scheme is not None
    four = Workload(8192, 4, 4000, 4000)
    assert speed(scheme.rewrite(experts), "RTX 5090", four).tpot_ms.value == pytest.approx(7.2, rel=0.15)


def test_composing_ahead_and_newer_kernels_make_steps_shorter(qwen: ModelIR) -> None:
    older, before, after = (speed(qwen, version=version).tpot_ms.value for version in ("0.9.0", "0.13.0", "0.14.0"))
    assert older > before > after
    step = {version: fitted_rates("vllm", "9.0", version).rates.step_s for version in ("0.13.0", "0.14.0", "0.15.0")}
    assert step["0.13.0"] / step["0.14.0"] > 1.05 * step["0.14.0"] / step["0.15.0"]


def test_widths_differ_by_load_and_by_experts() -> None:
    """From sources left out: chats in a burst are the least certain, one request of a dense model the most."""
    dense, routed = (fitted_rates("vllm", "9.0", experts=experts).widths for experts in (False, True))
    assert dense[Regime.ALONE].tpot < dense[Regime.BELOW].tpot < dense[Regime.BURST].tpot
    assert all(dense[regime].tpot < routed[regime].tpot for regime in (Regime.ALONE, Regime.BELOW, Regime.BURST))


def test_a_run_is_the_sum_of_its_kinds_of_steps(qwen: ModelIR) -> None:
    """What is recorded of a simulated run tells its mean time between tokens again, but for what kinds of steps level out."""
    card, rates, work = (
        card_of(find_engine("vllm"), find_gpu("H100 SXM")),
        fitted_rates("vllm", "9.0").rates,
        work_of(qwen),
    )

    def seconds(step: Step) -> float:
        return step_seconds(work, card, rates, step)

    lengths = list(zip(spread(500, 0.2, 64), spread(100, 0.2, 64, seed=1), strict=True))
    rules, arrivals = Rules(8192, 256), closed_loop(16, 64)
    kinds, run = run_steps(seconds, 2.0, Scheduler(rules, Cache(100_000)), arrivals, lengths)
    assert run == simulate(StepTimes(seconds, 2.0), Scheduler(rules, Cache(100_000)), arrivals, lengths)
    mean = sum((d - f) / (n - 1) for d, f, (_, n) in zip(run.done, run.first, lengths, strict=True)) / 64
    assert sum(kind.tpot * seconds(kind.step) for kind in kinds) == pytest.approx(mean, rel=0.05)


def test_a_token_reads_only_the_experts_it_uses(experts: ModelIR) -> None:
    """Qwen3-30B-A3B reads 3 of 30 billion weights for one token, and nearly all of them for a batch of 128."""
    alone, many = speed(experts).tpot_ms.value, speed(experts, work=replace(ONE, concurrency=128)).tpot_ms.value
    weights_s = experts.tensor_bytes / find_gpu("A100 SXM4 80GB").bandwidth_bytes_per_s
    assert alone / 1e3 < 0.6 * weights_s < weights_s < many / 1e3


def test_requests_queue_where_the_cache_is_full(qwen: ModelIR) -> None:
    load, per_token = Workload(8192, 64, 4096, 512), 28 * 2 * 4 * 128 * 2
    roomy = speed(qwen, work=load, kv_cache_memory_bytes=1_000_000 * per_token)
    tight = speed(qwen, work=load, kv_cache_memory_bytes=50_000 * per_token)
    assert tight.ttft_ms.value > 10 * roomy.ttft_ms.value
    assert tight.tpot_ms.value < roomy.tpot_ms.value


def test_old_versions_have_more_overhead(qwen: ModelIR) -> None:
    times = [speed(qwen, "H100 SXM", version=version).tpot_ms.value for version in ("0.19.0", "0.15.1", "0.12.0")]
    assert times == sorted(times) and times[0] < times[-1]


def test_a_warm_call_does_not_grow_with_the_depth(qwen: ModelIR) -> None:
    """A plan asks thousands of times, so 64 blocks cost about as many function calls as 28; `benchmarks/plan_speed.py` has seconds."""
    deep, gpu, engine = open_model("Qwen2.5-32B-Instruct").ir, find_gpu("H100 SXM"), find_engine("vllm")

    def calls(ir: ModelIR) -> int:
        memory = engine.estimate(ir, gpu, Settings(), ONE).memory
        engine.speed(ir, gpu, Settings(), ONE, memory)
        count = 0

        def counted(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event == "call"

        usual = sys.getprofile()
        sys.setprofile(counted)
        try:
            engine.speed(ir, gpu, Settings(), ONE, memory)
        finally:
            sys.setprofile(usual)
        return count

    more = len(deep.decoder.layers) - len(qwen.decoder.layers)
    assert more == 36
    assert calls(deep) - calls(qwen) < more
    assert calls(deep) < 400


@pytest.mark.parametrize("gpu", ["RTX 3080 10GB", "RTX 3060 12GB", "RTX 4090", "A100 SXM4 80GB"])
@pytest.mark.parametrize("engine", ["vllm", "exllamav2"])
def test_nobody_queues_at_the_concurrency_that_the_memory_allows(qwen: ModelIR, gpu: str, engine: str) -> None:
    """Requests shorter than the context all run at once: a first token waits for the prompts ahead, not for answers to end."""
    ir, card, target = w4(qwen) if engine == "vllm" else qwen, find_gpu(gpu), find_engine(engine)
    load = Workload(8192, 1, 2000, 400)
    allowed = int(target.memory(ir, card, Settings(), load).kv.max_concurrency.value)
    load = replace(load, concurrency=max(1, allowed))
    found = target.estimate(ir, card, Settings(), load).speed
    prompts_ahead_ms = 1000 * load.input_tokens * load.concurrency / found.prefill_tok_s.value  # type: ignore[operator]
    assert found.ttft_ms.value < prompts_ahead_ms + 1000


def test_an_engine_has_one_token_budget(qwen: ModelIR) -> None:
    """vLLM's default by memory, but for the A100 by name: `EngineArgs.get_batch_defaults`."""
    budgets = {name: find_engine("vllm").scheduler(find_gpu(name), Settings(), ONE).tokens
               for name in ("A100 SXM4 80GB", "A800 SXM4 80GB", "H100 SXM", "RTX 4090")}  # fmt: skip
    assert budgets == {"A100 SXM4 80GB": 2048, "A800 SXM4 80GB": 8192, "H100 SXM": 8192, "RTX 4090": 2048}
    assert find_engine("vllm-cpu").scheduler(find_gpu("cpu"), Settings(), ONE).tokens == 2048


def test_states_and_windows_take_no_more_cache_for_longer_requests() -> None:
    """A recurrent state is as large after one token as after a thousand: how many fit does not follow from tokens."""
    kv = KVEstimate(5.0, 1000, Quantity.exact(800), Quantity.exact(8.0), 800, 10.0, 20, 300)
    assert requests_held(kv, Workload(100, 8, 40, 20)) == pytest.approx(8 * 1000 / (5 * 50 + 10 * 20 + 300))
    assert requests_held(kv, Workload(100, 8, 8, 4)) == pytest.approx(8 * 1000 / (5 * 10 + 10 * 10 + 300))
    constant = KVEstimate(0.0, 1000, Quantity.exact(800), Quantity.exact(8.0), 800, state_bytes=1000)
    assert requests_held(constant, Workload(100, 8, 1, 1)) == 8.0
    assert requests_held(replace(kv, max_concurrency=Quantity.exact(0.0)), Workload(100, 8, 40, 20)) == float("inf")


def test_stages_on_several_machines_wait_for_the_network_between_them(qwen: ModelIR) -> None:
    alone = find_gpu("H100 SXM5 80GB")
    fast, slow = (replace(alone, network=Network(8, rate, 20e-6)) for rate in (400e9, 1.25e9))
    many = Workload(4096, 64, 2048, 256)
    settings = Settings(parallel=Parallel(tp=8, pp=2))
    one, near, far = (on(gpu, qwen, many, settings) for gpu in (alone, fast, slow))
    assert one.ttft_ms.value < near.ttft_ms.value < far.ttft_ms.value
    assert one.tpot_ms.value < near.tpot_ms.value < far.tpot_ms.value
    assert far.tpot_ms.basis is Basis.ASSUMED, "no row of the data is of several machines"
    inside = Settings(parallel=Parallel(tp=4, pp=2))
    assert on(slow, qwen, many, inside) == on(alone, qwen, many, inside), "what stays in a machine sees no network"


def test_what_goes_over_the_network_is_counted_by_bytes_and_messages(qwen: ModelIR) -> None:
    gpu = replace(find_gpu("H100 SXM5 80GB"), network=Network(4, 1e9, 1e-3))
    work, card = work_of(qwen), card_of(find_engine("vllm"), gpu)
    rates = fitted_rates("vllm", generation_of(gpu)).rates
    fixed = rates.links[card.wiring].fixed_s
    taken = handing_on_seconds(work, card, rates, tokens=1000, tp=2, pp=4)
    assert taken == pytest.approx(3 * fixed + 1e-3 + 4 * work.hidden * 1000 / 1e9), "four stages, two to a machine"
    step = Step(8, 1000)
    assert (
        step_seconds(work, card, rates, step, 8) > step_seconds(work, replace(card, network=None), rates, step, 8) + 0.1
    )


def test_replicas_that_share_experts_read_fewer_and_send_tokens_to_each_other() -> None:
    moe, gpu = open_model("Qwen/Qwen3-235B-A22B").ir, find_gpu("H100 SXM5 80GB")
    work, card = work_of(moe), card_of(find_engine("vllm"), gpu)
    rates = fitted_rates("vllm", generation_of(gpu), experts=True).rates
    step = Step(64, 1000)
    exchanged = exchange_seconds(work, card, rates, 64, 1, 8)
    assert step_seconds(work, card, rates, step, 1, 8) - exchanged < step_seconds(work, card, rates, step, 1)
    far = replace(card, network=Network(8, 1e9, 1e-3))
    assert exchange_seconds(work, far, rates, 64, 1, 8) == exchanged, "what stays in a machine sees no network"
    sent = 2 * 15 / 16 * 2 * work.hidden * 64 * 2
    assert exchange_seconds(work, far, rates, 64, 8, 2) == pytest.approx(work.expert_layers * (sent / 1e9 + 2e-3))


def test_a_spread_of_experts_over_machines_is_as_slow_as_their_network() -> None:
    moe, many = open_model("Qwen/Qwen3-235B-A22B").ir, Workload(4096, 256, 2048, 256)
    alone = find_gpu("H100 SXM5 80GB")
    fast, slow = (replace(alone, network=Network(8, rate, 20e-6)) for rate in (400e9, 12.5e9))
    spread = Settings(parallel=Parallel(tp=1, dp=16, ep=16))
    near, far = on(fast, moe, many, spread), on(slow, moe, many, spread)
    assert near.tpot_ms.value < far.tpot_ms.value and far.tpot_ms.basis is Basis.ASSUMED
    dense, apart = open_model("Qwen/Qwen3-32B").ir, Settings(parallel=Parallel(tp=8, dp=2))
    assert on(slow, dense, many, apart).tpot_ms.value == on(alone, dense, many, apart).tpot_ms.value


def test_replicas_that_cut_experts_between_them_exchange_tokens_as_those_with_whole_ones() -> None:
    moe, many = open_model("Qwen/Qwen3-235B-A22B").ir, Workload(4096, 256, 2048, 256)
    card = find_gpu("H100 SXM5 80GB")
    cut, whole = (on(card, moe, many, Settings(parallel=Parallel(tp=4, dp=2, ep=ep))) for ep in (1, 8))
    assert cut.tpot_ms.value == pytest.approx(whole.tpot_ms.value, rel=0.02)


def test_replicas_that_share_experts_are_as_sure_as_one_card_but_for_what_they_share() -> None:
    moe, many = open_model("Qwen/Qwen3-30B-A3B").ir, Workload(8192, 64, 1500, 400)
    card = find_gpu("L40S")
    cut, shared, apart = (
        on(card, moe, replace(many, concurrency=clients), Settings(parallel=parallel)).tpot_ms
        for clients, parallel in ((64, Parallel(tp=4)), (64, Parallel(dp=4, ep=4)), (16, Parallel()))
    )
    known, own = (math.log(each.high / each.value) for each in (cut, shared))
    assert cut.basis is Basis.CALIBRATED and shared.basis is Basis.ASSUMED
    assert known < own < known + math.log(2), "an exchange and uneven experts, not all that a card does"
    assert math.log(apart.high / apart.value) == pytest.approx(known)


def test_a_first_token_alone_is_unsure_of_its_prompt_and_of_the_hosts_seconds() -> None:
    """The host's delay is the same for any prompt: it counts where that is all of the time, not beside a second of computing."""
    width = fitted_rates("vllm", "9.0").widths[Regime.ALONE]
    short, long = width.first(0.02), width.first(2.0)
    assert short == width.ttft > long > width.prompt
    assert math.exp(long) - math.exp(width.prompt) == pytest.approx(width.host_s / 2.0)
    below = fitted_rates("vllm", "9.0").widths[Regime.BELOW]
    assert below.first(0.02) == below.first(20.0) == below.ttft


def test_stages_are_calibrated_only_as_far_as_rows_have_them() -> None:
    """Seven rows have stages, each of whole matrices (benchmarks/data/serving_refs.jsonl)."""
    rows = map(json.loads, (ROOT / "benchmarks/data/serving_refs.jsonl").read_text().splitlines())
    stages = [row for row in rows if (row["pp"] or 1) > 1]
    assert stages and {row["tp"] for row in stages} == {1.0}
    bases = [fitted_rates("vllm", "8.9", experts=True, stages=count).basis for count in (1, 2, 4)]
    assert bases == [Basis.CALIBRATED, Basis.CALIBRATED, Basis.ASSUMED]


def test_only_a_version_that_parses_templates_anew_has_its_host_do_so() -> None:
    """0.11.0 does (`resolve_chat_template_kwargs`), but for gpt-oss, whose chats have none; 0.10.2 and 0.12.0 do not."""

    def serial_s(version: str, architecture: str = "Qwen3ForCausalLM") -> float:
        rates = fitted_rates("vllm", "9.0", version).rates
        return with_templates(rates, architecture).serial_s

    assert serial_s("0.11.0") == pytest.approx(serial_s("0.12.0") + engine_values("vllm")["template_s"])
    assert serial_s("0.10.2") == serial_s("0.12.0") == serial_s("0.11.0", "GptOssForCausalLM")
