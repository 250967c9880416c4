"""Asks a served model over its API, and measures its answers."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.ir.fields import file_bytes, json_object
from passes.record import dataclass
from targets.serve.process import EngineError, Served

#: Token ids that prompts are made of.
_IDS = range(100, 900)
#: What a server that holds a model takes as a prompt: token ids, or text where it takes nothing else.
Prompt = list[int] | str


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: seconds from sending it to its first token, seconds from that to its last, the tokens it has, its text."""

    ttft_s: float
    rest_s: float
    tokens: int
    text: str

    @property
    def tpot_s(self) -> float:
        """Seconds a token after the first."""
        return self.rest_s / (self.tokens - 1) if self.tokens > 1 else 0.0


def unseen_prompt(tokens: int, vocabulary: int = _IDS.stop) -> list[int]:
    """Draw random token ids, so that no two prompts begin alike: small ones, which nearly every vocabulary has; of a smaller one its upper
    half, beyond what is special.
    """
    ids = _IDS if vocabulary >= _IDS.stop else range(vocabulary // 2, vocabulary)
    return [random.choice(ids) for _ in range(tokens)]


def vocabulary_of(result: Path) -> int:
    """Return how many token ids a model's folder has; as many as are drawn from, where it does not say."""
    try:
        config = json_object(file_bytes(result / "config.json"), "config.json")
    except (OSError, InputError):
        return _IDS.stop
    inner = config.get("text_config")
    size = (inner if isinstance(inner, dict) else config).get("vocab_size")
    return size if isinstance(size, int) and size > 1 else _IDS.stop


def request_body(model: str, prompt: Prompt, tokens: int) -> bytes:
    """Return a completion request for exactly `tokens` tokens, streamed, as the OpenAI API takes it."""
    body: dict[str, Any] = {
        "model": model, "prompt": prompt, "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    return json.dumps(body).encode()


def ask(served: Served, body: bytes) -> Answer:
    """Send one request and read its answer to the end. Raises EngineError where it is refused, OSError where the server is gone."""
    connection = http.client.HTTPConnection(served.host, served.port, timeout=600)
    try:
        sent = time.perf_counter()
        reply = post(connection, "/v1/completions", body)
        first = last = 0.0
        chunks, tokens, text = 0, None, []
        for data, at in _events(reply):
            if error := data.get("error"):
                raise EngineError(f"the engine broke off: {_said(error)}", remedy="see its log")
            if choices := data.get("choices"):
                first, last, chunks = first or at, at, chunks + 1
                text.append(choices[0].get("text") or "")
            tokens = (data.get("usage") or {}).get("completion_tokens", tokens)
    finally:
        connection.close()
    if not chunks:
        raise EngineError("the engine answered no token", remedy="see its log")
    return Answer(first - sent, last - first, tokens or chunks, "".join(text))


def _said(error: Any) -> str:
    """What an error event says."""
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]


def post(connection: http.client.HTTPConnection, path: str, body: bytes) -> http.client.HTTPResponse:
    """Send JSON. Raises EngineError with what the server says where it does not answer 200."""
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    if reply.status != 200:
        raise EngineError(
            f"the engine answered {reply.status}: {reply.read(500).decode(errors='replace')}", remedy="see its message"
        )
    return reply


def _events(reply: http.client.HTTPResponse) -> Iterator[tuple[dict[str, Any], float]]:
    """Events of a stream, each with the moment its bytes came. Whole chunks are read: line by line takes a client's time."""
    rest = b""
    while piece := reply.read1(1 << 16):
        at = time.perf_counter()
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data.startswith(b"{") and line.startswith(b"data:"):
                yield json.loads(data), at
