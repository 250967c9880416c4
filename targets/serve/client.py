"""Asks a served model over its API, and measures its answers."""

from __future__ import annotations

import http.client
import json
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

from targets.serve.process import EngineError, Served


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians over requests that ran one at a time: milliseconds to the first token, milliseconds a further token."""

    ttft_ms: float
    tpot_ms: float
    requests: int
    input_tokens: int
    output_tokens: int
    text: str

    @property
    def decode_tok_s(self) -> float:
        """Tokens a second after the first."""
        return 1000 / self.tpot_ms if self.tpot_ms > 0 else 0.0


def measure(served: Served, model: str, *, input_tokens: int, output_tokens: int, requests: int = 5) -> Timing:
    """Time requests one after another over the OpenAI API, each with a prompt that no server has seen (no prefix hits)."""
    _stream(served, model, _prompt(16), 4)
    firsts, rests, text = [], [], ""
    for _ in range(requests):
        times, text = _stream(served, model, _prompt(input_tokens), output_tokens)
        began, stamps = times[0], times[1:]
        if len(stamps) < 2:
            raise EngineError(
                "the engine answered fewer than two tokens", remedy="ask for more output_tokens in the workload"
            )
        firsts.append(1000 * (stamps[0] - began))
        rests.append(1000 * (stamps[-1] - stamps[0]) / (len(stamps) - 1))
    return Timing(statistics.median(firsts), statistics.median(rests), requests, input_tokens, output_tokens, text)


def _prompt(tokens: int) -> list[int]:
    """Random token ids, so that no two prompts begin alike; small ids exist in every vocabulary."""
    return [random.randrange(100, 900) for _ in range(tokens)]


def _post(served: Served, body: dict[str, Any]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(served.host, served.port, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    if reply.status != 200:
        raise EngineError(
            f"the engine answered {reply.status}: {reply.read(500).decode(errors='replace')}", remedy="see its message"
        )
    return reply


def _stream(served: Served, model: str, prompt: list[int], tokens: int) -> tuple[list[float], str]:
    """When the request was sent, then when each token came; and the text."""
    body = {
        "model": model, "prompt": prompt, "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True,
    }  # fmt: skip
    times, text = [time.perf_counter()], ""
    reply = _post(served, body)
    for raw in reply:
        line = raw.decode().strip()
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        choices = json.loads(line[6:]).get("choices") or []
        if choices:
            times.append(time.perf_counter())
            text += choices[0].get("text") or ""
    return times, text
