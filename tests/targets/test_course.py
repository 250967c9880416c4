"""A course told again on another clock is what the load's own simulation gives, to the last bit, or it is not told."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from passes.ir.sources import open_model
from targets.engines.engine import Settings, SpeedEstimate, find_engine
from targets.gpu import find_gpu
from targets.simulation import serving
from targets.simulation.arrivals import closed_loop
from targets.simulation.course import Recorder, retimed
from targets.simulation.exllama import Generator
from targets.simulation.lengths import spread
from targets.simulation.scheduler import Batch, Cache, Rules, Scheduler
from targets.simulation.simulate import Host, Queue, simulate
from targets.workload import Workload

_CLIENTS, _COUNT = 24, 160
_LENGTHS = list(zip(spread(400, 0.4, _COUNT), spread(90, 0.6, _COUNT, seed=1), strict=True))
_LOAD = closed_loop(_CLIENTS, _COUNT)
_HOST = Host(0.002, 0.0006, 1e-6)


def _vllm(places: int, blocks: int) -> Queue:
    return Scheduler(Rules(2048, places), Cache(blocks, remembers=True))


def _synchronous(places: int, blocks: int) -> Queue:
    return Scheduler(Rules(512, places, lag=0, whole_prompt=False), Cache(blocks, prefix=64))


def _exllama(places: int, blocks: int) -> Queue:
    return Generator(2048, places, Cache(blocks, 256))


def _step_s(slower: float, bent: float) -> Callable[[Batch], float]:
    """Seconds of a step, of which prompts take more or less beside decoding."""

    def seconds(batch: Batch) -> float:
        read = sum(tokens for _, tokens, _ in batch.chunks)
        return slower * (0.02 + 3e-4 * batch.decode + 2e-7 * batch.context + bent * 1e-4 * read)

    return seconds


def _clock(chance: random.Random) -> float:
    """From half to twice as fast."""
    return 2.0 ** chance.uniform(-1, 1)


@pytest.mark.parametrize("composer", [_vllm, _synchronous, _exllama])
def test_a_course_on_another_clock_is_the_run_that_is_simulated(composer: Callable[[int, int], Queue]) -> None:
    chance, told = random.Random(7), 0
    for _ in range(80):
        recorder = Recorder(composer(chance.choice((12, _CLIENTS, 64)), chance.choice((200, 700, 5000))))
        simulate(_step_s(1.0, 1.0), recorder, _LOAD, _LENGTHS, _HOST)
        course = recorder.course()
        own = composer(chance.choice((12, _CLIENTS, 64, 256)), chance.choice((200, 690, 710, 5000)))
        if course is None or not course.fits(own.room):
            continue
        step_s = _step_s(_clock(chance), chance.choice((1.0, 1.0, 0.7, 1.3)))
        run = retimed(course, own.lag, step_s, _LOAD, _LENGTHS, _HOST)
        if run is not None:
            told += 1
            assert run == simulate(step_s, own, _LOAD, _LENGTHS, _HOST)
    assert told >= 8


def test_less_room_than_was_left_is_no_answer() -> None:
    recorder = Recorder(_vllm(_CLIENTS, 700))
    simulate(_step_s(1.0, 1.0), recorder, _LOAD, _LENGTHS, _HOST)
    course = recorder.course()
    assert course is None or not course.fits(_vllm(_CLIENTS, 300).room)
    assert course is None or not course.fits(_vllm(_CLIENTS - 1, 700).room)


def test_a_clock_that_brings_requests_to_other_steps_is_no_answer() -> None:
    recorder = Recorder(_vllm(64, 5000))
    simulate(_step_s(1.0, 1.0), recorder, _LOAD, _LENGTHS, _HOST)
    course = recorder.course()
    assert course is not None
    assert retimed(course, 1, _step_s(0.005, 1.0), _LOAD, _LENGTHS, _HOST) is None


@pytest.mark.parametrize("clients", [8, 50])
def test_what_users_see_is_the_same_whether_courses_are_known(clients: int) -> None:
    engine, gpu, ir = find_engine("vllm"), find_gpu("L4"), open_model("meta-llama/Llama-3.1-8B").ir
    workload = Workload(8192, clients, 600, 250)
    memory = engine.memory(ir, gpu, Settings(), workload)

    def seen(settings: Settings) -> SpeedEstimate:
        serving._served.cache_clear()
        return engine.served(ir, gpu, settings, workload, memory)

    for settings in (Settings(), Settings(max_num_seqs=64)):
        serving._courses.cache_clear()
        alone = seen(settings)
        assert seen(settings) == alone
        seen(Settings(version="0.25"))
        assert seen(settings) == alone
