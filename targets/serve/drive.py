"""Drives an engine that serves the OpenAI API from its launch files: started, warmed, put under a load, its log read, stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from targets.engines.engine import Engine
from targets.serve.client import Prompt, ask, request_body, unseen_prompt, vocabulary_of
from targets.serve.load import Load, LoadTiming, load
from targets.serve.process import Served, engine_python, serving
from targets.serve.soak import Soaked, SoakRequest, soak
from targets.serve.verifier import Installed, Observed, Say, Verifier, VerifyRequest

#: Tokens of the prompt whose answer is shown, of that answer, and of those that warm the engine up.
_QUESTION, _SAMPLE, _WARM = 16, 48, 8


class ServerVerifier(Verifier):
    """Any engine whose launch script starts such a server and whose log tells the cache (`Engine.server`)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def python(self, given: Path | None) -> Path:
        """Take it as given, else TIGHTFIT_ENGINE, else where `make engine` puts it."""
        return engine_python(given)

    def installed(self, python: Path) -> Installed:
        """Answer that it is unknown: each engine asks in its own way."""
        return Installed()

    def observe(self, request: VerifyRequest, say: Say) -> Observed:
        """Measure over one start: a sample, a round of short answers that warms every client's place, then the load."""
        name, log = self._engine.served_name(request.launch), self._engine.server
        assert log is not None
        with serving(request.launch / "run.sh", request.python) as served:
            say(f"answers after {served.start_seconds:.0f} s; {request.load.requests} requests, {request.load.arrival}")
            prompt = prompts_of(request)
            short = prompt(min(_QUESTION, request.load.input_tokens))
            sample = ask(served, request_body(name, short, min(_SAMPLE, request.load.output_tokens)))
            warm_up(served, name, request.load, prompt)
            timing, notes = self.press(served, name, request)
            soaked = None if request.soak is None else self.soak(served, name, request, request.soak, say)
            text = served.log.read_text(errors="replace")
            return Observed(
                log.kv_tokens(text),
                log.max_concurrency(text),
                (timing,),
                served.start_seconds,
                sample.text,
                notes=notes,
                soaked=soaked,
            )

    def press(self, served: Served, name: str, request: VerifyRequest) -> tuple[LoadTiming, tuple[str, ...]]:
        """Put the load on with our own client. Returns its timing, and notes."""
        return load(served, name, request.load, prompts_of(request)), ()

    def soak(self, served: Served, name: str, request: VerifyRequest, asked: SoakRequest, say: Say) -> Soaked:
        """Fill the context under the workload's arrival."""
        say(f"soaks: requests of {asked.workload.context:,} tokens for {asked.seconds:.0f} s")
        return soak(served, name, asked, self._engine.metrics, prompts_of(request))


def prompts_of(request: VerifyRequest) -> Callable[[int], list[int]]:
    """Return what draws prompts of so many tokens that the result's model knows."""
    return partial(unseen_prompt, vocabulary=vocabulary_of(request.result))


def warm_up(served: Served, name: str, asked: Load, prompt: Callable[[int], Prompt] = unseen_prompt) -> None:
    """Ask for as many short answers at once as the load has clients: kernels are compiled and memory is taken by first requests."""
    short = replace(
        asked, requests=asked.concurrency, output_tokens=min(_WARM, asked.output_tokens), rate=None, ramp_s=0.0
    )
    load(served, name, short, prompt)
