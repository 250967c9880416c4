"""The load that `verify` puts on: as many at once as asked, every prompt unseen, what failed counted, the client never what is measured."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from targets.engines.vllm.verify import arguments, bench_serve, timing_of
from targets.quantity import Quantity
from targets.serve.client import unseen_prompt, vocabulary_of
from targets.serve.load import Load, LoadTiming, Spread, load
from targets.serve.process import EngineError, Served, serving
from targets.serve.verifier import VerifyRequest

FAKE = Path(__file__).with_name("fake_server.py")
_LOAD = Load(32, 8, 4, 12)


def script(folder: Path, *options: str) -> Path:
    """A launch script of the server that holds no model."""
    path = folder / "run.sh"
    words = " ".join(f"'{option}'" for option in options)
    path.write_text(f"exec '{sys.executable}' '{FAKE}' \"$PORT\" {words}\n")
    return path


@pytest.fixture
def server(tmp_path: Path) -> Callable[..., Any]:
    @contextmanager
    def started(*options: str) -> Iterator[Served]:
        with serving(script(tmp_path, *options), None) as served:
            yield served

    return started


def seen(served: Served) -> dict[str, Any]:
    connection = http.client.HTTPConnection(served.host, served.port)
    connection.request("GET", "/seen")
    found: dict[str, Any] = json.load(connection.getresponse())
    return found


def test_clients_keep_as_many_requests_running_as_asked_and_no_more(server: Callable[..., Any]) -> None:
    with server() as served:
        timing = load(served, "fake", _LOAD)
        told = seen(served)
    assert told["most"] == 4 and len(told["prompts"]) == 12
    assert len({tuple(prompt[:16]) for prompt in told["prompts"]}) == 12, "no prompt begins as another"
    assert all(len(prompt) == 32 for prompt in told["prompts"])
    assert (timing.failed, timing.tool, timing.error) == (0, "tightfit", None)
    assert timing.tok_s == pytest.approx(12 * 8 / timing.seconds)


def test_the_client_adds_little_to_what_128_streams_take(server: Callable[..., Any]) -> None:
    """The server gives each a token every 20 ms, of which the client's own work is a part: processor time, which a busy machine does not
    stretch.
    """
    with server("--gap", "0.02") as served:
        begun = time.process_time()
        timing = load(served, "fake", Load(16, 24, 128, 128))
        each_step = (time.process_time() - begun) / 24
    assert timing.failed == 0 and timing.tpot_ms.median > 19
    assert each_step < 0.015, "the client's own time shows in a token's"


def test_requests_that_arrive_by_chance_do_not_wait_for_answers(server: Callable[..., Any]) -> None:
    with server("--gap", "0.05") as served:
        timing = load(served, "fake", replace(_LOAD, concurrency=1, requests=10, rate=100.0))
        assert seen(served)["most"] > 1
    assert timing.failed == 0 and timing.load.arrival == "100 a second"


def test_clients_come_one_after_the_other(server: Callable[..., Any]) -> None:
    """Each holds its place from when it comes: the second request of the first client does not wait for the last one to be there."""
    with server("--gap", "0.01") as served:
        begun = time.perf_counter()
        timing = load(served, "fake", replace(_LOAD, ramp_s=6.0))
        took = time.perf_counter() - begun
        told = seen(served)
    assert timing.failed == 0 and len(told["prompts"]) == 12 and told["most"] < 4
    assert took < 6.0 and timing.load.arrival == "4 at a time, who come over 6 s"


def test_what_is_refused_is_counted_and_told(server: Callable[..., Any]) -> None:
    with server("--fail", "3") as served:
        timing = load(served, "fake", _LOAD)
        assert timing.failed == 4 and timing.error is not None and "503" in timing.error and "no room" in timing.error
    with server("--fail", "1") as served, pytest.raises(EngineError, match=r"none of 12 requests was answered.*503"):
        load(served, "fake", _LOAD)


def test_a_server_that_is_gone_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="none of 2 requests"):
        load(Served("127.0.0.1", 9, Path("log"), 0.0), "fake", replace(_LOAD, requests=2))


@pytest.mark.parametrize(
    ("config", "size"),
    [('{"vocab_size": 262}', 262), ('{"text_config": {"vocab_size": 256000}}', 256000), ("{}", 900), ("no JSON", 900), (None, 900)],
)  # fmt: skip
def test_prompts_are_of_tokens_that_the_model_has(config: str | None, size: int, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert vocabulary_of(tmp_path) == size
    drawn = unseen_prompt(2000, vocabulary_of(tmp_path))
    assert max(drawn) < min(size, 900) and min(drawn) >= min(100, size // 2)
    assert drawn != unseen_prompt(2000, vocabulary_of(tmp_path))


def test_figures_of_a_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 2.0, 3.0, 3.0, 3.0)
    assert Spread.of([float(value) for value in range(1, 101)]).p95 == 95.0


def test_what_the_bench_saves_is_read_request_by_request() -> None:
    saved = {
        "duration": 2.0, "ttfts": [0.1, 0.3, 0.0], "itls": [[0.02] * 7, [0.04] * 7, []], "output_lens": [8, 8, 0],
        "errors": ["", "", "Traceback\nClientError: 503"], "input_lens": [32, 31, 32],
    }  # fmt: skip
    timing = timing_of(saved, _LOAD)
    assert isinstance(timing, LoadTiming)
    assert (timing.ttft_ms.mean, timing.tpot_ms.mean) == (pytest.approx(200), pytest.approx(30))
    assert (timing.tok_s, timing.failed, timing.error) == (8.0, 1, "ClientError: 503")
    nothing = saved | {"ttfts": [0.0], "itls": [[]], "output_lens": [0], "errors": [""]}
    assert "answered no token" in str(timing_of(nothing, _LOAD))
    assert timing_of(saved | {"input_lens": [1, 32, 20]}, _LOAD) == "its prompts had 18 tokens, not 32"


def test_the_bench_is_told_the_load_and_asks_nothing_before_it() -> None:
    def told(asked: Load) -> dict[str, str]:
        words = list(
            arguments(Served("here", 1, Path("log"), 0), "name", Path("made"), asked, Path("/tmp/x/bench.json"))
        )
        return {word: after for word, after in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}

    closed = told(_LOAD)
    assert closed["--max-concurrency"] == "4" and "--request-rate" not in closed and closed["--num-prompts"] == "12"
    assert closed["--ready-check-timeout-sec"] == "0" and closed["--random-input-len"] == "32"
    arriving = told(replace(_LOAD, rate=2.5))
    assert arriving["--request-rate"] == "2.5" and "--max-concurrency" not in arriving
    assert closed["--seed"] != arriving["--seed"]


def test_a_bench_that_does_not_run_says_why(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'pandas'\" >&2\nexit 1\n")
    python.chmod(0o755)
    request = VerifyRequest(tmp_path, tmp_path, python, _LOAD, Quantity.exact(1), 1)
    said = bench_serve(python, Served("127.0.0.1", 9, Path("log"), 0), "fake", request)
    assert said == "ModuleNotFoundError: No module named 'pandas'"
