"""Black box: which answers are learned from, and how a server is asked for them."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from passes.distill.answers import Answer, fault, fit_answers
from passes.distill.distill import Distill
from passes.distill.endpoint import ATTEMPTS, Endpoint, read_prompts
from passes.errors import InputError, TightfitError
from planner.plan.make import plan
from planner.spec.parse import load_spec

GOOD = "The quick brown fox jumps over the lazy dog and sleeps."


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer("", GOOD, True), None), (Answer("", GOOD), None), (Answer("", "Too short."), "short"),
        (Answer("", GOOD, False), "unfinished"), (Answer("", "one two three four " * 20, True), "repetitive"),
    ],
)  # fmt: skip
def test_an_answer_is_judged(answer: Answer, expected: str | None) -> None:
    assert fault(answer) == expected


def test_each_text_is_learned_from_once() -> None:
    dropped: Counter[str] = Counter()
    answers = [Answer("a", GOOD), Answer("b", GOOD.upper()), Answer("c", "No."), Answer("d", GOOD + " Then it wakes.")]
    assert [answer.prompt for answer in fit_answers(answers, dropped)] == ["a", "d"]
    assert dropped == {"duplicate": 1, "short": 1}


class Server:
    """A server that answers every prompt with its own text, or with the status that comes next."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.statuses: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, body))
                status = outer.statuses.pop(0) if outer.statuses else 200
                text = f"Answer to {body.get('prompt')}"
                choice = {"finish_reason": "stop", "text": text, "message": {"content": text}}
                said = json.dumps({"choices": [choice]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def endpoint(server: Server, time: Time, limit: int = 60) -> Endpoint:
    return Endpoint(server.url, "teacher", limit, 16, time.sleep, lambda: time.now)


def test_a_limit_is_kept_and_nothing_is_asked_twice(server: Server, tmp_path: Path) -> None:
    time, kept = Time(), tmp_path / "kept.jsonl"
    prompts = ["a", "b", {"messages": [{"role": "user", "content": "c"}]}]
    first = list(endpoint(server, time, 30).answers(prompts[:2], kept))
    assert [answer.text for answer in first] == ["Answer to a", "Answer to b"] and time.now == 2.0
    kept.write_text(kept.read_text() + '{"prompt": "cut o')
    both = list(endpoint(server, time).answers(prompts, kept))
    assert both[:2] == first and [path for path, _ in server.asked][2:] == ["/v1/chat/completions"]
    assert server.asked[0][1] == {"model": "teacher", "max_tokens": 16, "prompt": "a"}


def test_what_passes_is_tried_again_and_what_does_not_is_said(server: Server, tmp_path: Path) -> None:
    time = Time()
    server.statuses = [503, 429]
    assert next(endpoint(server, time).answers(["a"], tmp_path / "one.jsonl")).finished
    assert [seconds for seconds in time.slept if seconds] == [1.0, 2.0]
    server.statuses = [401]
    with pytest.raises(InputError, match="refuses: 401"):
        list(endpoint(server, time).answers(["a"], tmp_path / "two.jsonl"))
    server.statuses = [500] * ATTEMPTS
    with pytest.raises(TightfitError, match=f"no answer in {ATTEMPTS} attempts"):
        list(endpoint(server, time).answers(["a"], tmp_path / "three.jsonl"))


def test_what_it_takes_is_said_beforehand(server: Server) -> None:
    assert endpoint(server, Time(), 30).estimate(1500) == "1,500 requests, at most 24,000 tokens, at least 50.0 min"


def test_prompts_are_read_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('"plain"\n{"prompt": "named"}\n{"messages": []}\n')
    assert read_prompts(path) == ["plain", "named", {"messages": []}]
    path.write_text('{"answer": 1}\n')
    with pytest.raises(InputError, match=r"prompts.jsonl:1: no prompt found"):
        read_prompts(path)


SPEC = """
model: Qwen/Qwen2.5-0.5B-Instruct
target: { gpu: rtx-4090 }
engine: vllm
workload: { context: 1024, concurrency: 1 }
passes:
  prune: { depth: 2 }
  distill: { method: sequences, dataset: "http://teacher:8000/v1", teacher: big, prompts: prompts.txt, tokens: 4096, length: 64, epochs: 4 }
  quantize: forbid
  kv_cache: [auto]
"""


def test_a_plan_says_what_its_teacher_is_asked_and_finds_the_prompts_beside_the_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(Path(__file__).parent)
    with pytest.raises(InputError, match=r"spec.yaml:8:3: no prompts at .*prompts.txt"):
        load_spec(tmp_path / "spec.yaml")
    (tmp_path / "prompts.txt").write_text("Tell of rivers.\n" * 30)
    said = "big at http://teacher:8000/v1 is asked: 30 requests, at most 1,920 tokens, at least 0.5 min; 1,152 tokens are wanted"
    notes = plan(tmp_path / "spec.yaml").document.decision.notes
    assert said in notes
    assert any("from another teacher" in note and "only `apply` measures" in note for note in notes)
    few = Distill(method="sequences", dataset="http://t/v1", teacher="big", prompts=str(tmp_path / "prompts.txt"))
    assert str(few.asks()).endswith("100,003,840 tokens are wanted: more prompts are needed")
    assert Distill().asks() is None
