"""A soak: the same requests as the simulation's, filled to the context, the engine watched meanwhile."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from targets.engines.vllm.engine import Vllm
from targets.serve.process import Served, serving
from targets.serve.soak import SoakRequest, soak
from targets.serve.watch import Look, Watch, look_at, session_bytes, values
from targets.workload import Workload
from tests.targets.test_load import script, seen

_FULL = Workload(64, 4, input_tokens=16, output_tokens=8).filled


def test_a_filled_workload_is_as_long_as_its_context_and_shares_nothing() -> None:
    asked = Workload(2048, 8, 512, 128, output_p95=256, shared_prefix=100, rate=3.0, pictures=1, picture_tokens=64)
    full = asked.filled
    assert (full.input_tokens, full.output_tokens, full.shared_prefix, full.pictures) == (1792, 256, 0, 0)
    assert (full.concurrency, full.rate, full.context) == (8, 3.0, 2048)
    assert Workload(100, 1, 50, 500).filled.input_tokens == 1, "an answer leaves one token for its prompt"


def test_every_request_fills_the_context_and_what_is_watched_is_told(tmp_path: Path) -> None:
    with serving(script(tmp_path, "--gap", "0.1"), None) as served:
        found = soak(served, "fake", SoakRequest(_FULL, 2.0), Vllm.metrics)
        told = seen(served)
    assert {len(prompt) for prompt in told["prompts"]} == {56} and told["most"] == 4
    timing, watched = found.timing, found.watched
    assert timing.failed == 0 and timing.load.requests == len(told["prompts"]) >= 8
    assert (watched.running, watched.waiting, watched.cache_share) == (4, 0, 1.0)
    assert watched.preemptions == len(told["prompts"]) // 3
    assert watched.memory_bytes is not None and 1 << 20 < watched.memory_bytes < 1 << 30
    assert watched.looks > 3 and watched.grown_bytes is not None


@pytest.mark.parametrize(("rate", "requests"), [(8.0, range(1, 9)), (math.inf, (4,))])
def test_requests_come_as_the_workload_s_do(rate: float, requests: Sequence[int], tmp_path: Path) -> None:
    workload = Workload(64, 4, 16, 8, rate=rate).filled
    with serving(script(tmp_path), None) as served:
        found = soak(served, "fake", SoakRequest(workload, 1.0), None)
    assert found.timing.load.requests in requests and found.watched.preemptions is None


def test_every_client_is_asked_once_however_short_the_time(tmp_path: Path) -> None:
    with serving(script(tmp_path, "--gap", "0.05"), None) as served:
        assert soak(served, "fake", SoakRequest(_FULL, 0.01), None).timing.load.requests == 4


def test_metrics_are_read_whatever_their_labels() -> None:
    text = '# TYPE a gauge\na{model="x y",engine="0"} 1.0\na{engine="1"} 2e3\nb 3\n\n'
    assert values(text) == {"a": [1.0, 2000.0], "b": [3.0]}


def test_what_does_not_answer_is_none() -> None:
    look = look_at(Served("127.0.0.1", 9, Path("log"), 0.0), Vllm.metrics)
    assert (look.memory_bytes, look.cache_share, look.running, look.preemptions) == (None, None, None, None)


def test_the_memory_of_a_session_is_that_of_its_processes() -> None:
    own = session_bytes(os.getsid(0))
    assert own is not None and own > 1 << 20
    assert session_bytes(1 << 30) is None


def test_memory_that_is_not_given_back_shows_as_growth() -> None:
    watch = Watch([Look(memory_bytes=held, card_bytes=(held, 7)) for held in (5, 9, 10, 14)])
    summary = watch.summary()
    assert (summary.memory_bytes, summary.grown_bytes, summary.card_bytes) == (14, 5, (14, 7))
    assert Watch([Look()]).summary().memory_bytes is None
