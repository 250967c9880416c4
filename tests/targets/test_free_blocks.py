"""Blocks that nobody holds: in which order they are taken, and what is found of them again."""

from __future__ import annotations

from typing import Any

from passes.ir.sources import open_model
from targets.engines.engine import Parallel, Settings, find_engine
from targets.engines.features import Features
from targets.gpu import find_gpu
from targets.simulation.arrivals import burst
from targets.simulation.free_blocks import FreeBlocks
from targets.simulation.scheduler import Batch, Cache, Rules, Scheduler
from targets.simulation.simulate import simulate
from targets.workload import Workload


def test_what_holds_nothing_is_taken_first_then_the_oldest_left_its_last_block_first() -> None:
    free = FreeBlocks(10, remembers=True)
    free.take(10)
    first, second = free.give(4, known=3), free.give(3, known=3)
    free.take(1)  # the fourth of the first, which is not whole
    assert (first.blocks, second.blocks, free.count) == (3, 3, 6)
    free.take(2)
    assert (first.blocks, second.blocks) == (1, 3)
    assert free.find(second) == 3 and free.count == 1
    free.take(1)
    assert free.find(first) == 0 and free.count == 0


def test_what_remembers_nothing_counts_only() -> None:
    free = FreeBlocks(10, remembers=False)
    free.take(10)
    left = free.give(4, known=0)
    assert free.find(left) == 0 and free.count == 4


def test_a_request_that_lost_its_blocks_computes_only_what_others_took() -> None:
    def computed(remembers: bool) -> tuple[int, int]:
        tokens: list[int] = []

        def step_s(batch: Batch) -> float:
            tokens.append(sum(count for _, count, _ in batch.chunks))
            return 1.0

        scheduler = Scheduler(Rules(2048, 64, 0), Cache(699, remembers=remembers))
        run = simulate(step_s, scheduler, burst(60), [(300, 150)] * 60)
        return run.preemptions, sum(tokens)

    (lost, again), (found, less) = computed(False), computed(True)
    assert lost and found and 60 * 300 < less < again


def _cache(model: str, gpu: str = "H100 SXM", **said: Any) -> Cache:
    engine, card, settings, workload = (
        find_engine("vllm"),
        find_gpu(gpu),
        Settings(**said),
        Workload(4096, shared_prefix=64),
    )
    kv = engine.memory(open_model(model).ir, card, settings, workload).kv
    queue = engine.queue(card, settings, workload, kv)
    assert isinstance(queue, Scheduler)
    return queue.cache


def test_a_prefix_is_shared_where_the_engine_caches_it() -> None:
    assert (_cache("llama-3.1-8b").prefix, _cache("llama-3.1-8b").remembers) == (64, True)
    off = _cache("llama-3.1-8b", features=Features(prefix_caching=False))
    assert (off.prefix, off.remembers) == (0, False)
    assert _cache("llama-3.1-8b", version="0.6.6").prefix == 0  # V0
    hybrid = "Qwen/Qwen3-Next-80B-A3B-Instruct"
    four = Parallel(tp=4)
    assert (_cache(hybrid, parallel=four).prefix, _cache(hybrid, parallel=four, version="0.20.0").prefix) == (64, 0)
    assert not _cache(hybrid, parallel=four).remembers
