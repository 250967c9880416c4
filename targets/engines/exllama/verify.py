"""Drives ExLlama for `optimize verify`: ExLlamaV2 through its own generator, either generation through TabbyAPI where a checkout is named.

ExLlamaV2's package is run in its own Python by `drivers/run_exllamav2.py`. ExLlamaV3 ties a cache to one loading of the model, so
that finding what fits would load it again for each size: it is driven through TabbyAPI alone.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from passes.errors import InputError
from targets.engines.engine import Engine
from targets.engines.exllama.launch import CONFIG
from targets.serve.client import Answer, ask, post, request_body
from targets.serve.drive import prompts_of, warm_up
from targets.serve.engine_build import ask_python
from targets.serve.load import Load, LoadTiming, load
from targets.serve.process import EngineError, Served, named_python, run_to_end, serving
from targets.serve.soak import Soaked, SoakRequest, soak
from targets.serve.verifier import Installed, Observed, Say, Verifier, VerifyRequest
from targets.serve.watch import watching

#: The program that runs in ExLlamaV2's Python.
DRIVER = Path(__file__).with_name("drivers") / "run_exllamav2.py"
#: The extension may have to be compiled first.
_SECONDS = 3600.0
#: Prints a package's version without importing it: that may compile its extension.
_ASK = """
import importlib.util, pathlib
found = importlib.util.find_spec({package!r})
scope = {{}}
exec(pathlib.Path(found.origin).with_name("version.py").read_text(), scope)
print(scope["__version__"])
"""
#: Answers that each client waits for where the generator is soaked: it is told a number, no time.
_ROUNDS = 3
#: Variables that name a checkout of TabbyAPI; the launch files' script knows the last.
_CHECKOUT = ("TIGHTFIT_TABBY", "TABBYAPI")


class TabbyVerifier(Verifier):
    """Through TabbyAPI from the launch files."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def python(self, given: Path | None) -> Path:
        """Take it as given, else TIGHTFIT_<ENGINE> (which makes its weights too) or TIGHTFIT_ENGINE, else this one if it has it."""
        own = f"TIGHTFIT_{self._engine.name.upper()}"
        if (named := named_python(given, own, "TIGHTFIT_ENGINE")) is not None:
            return named
        if importlib.util.find_spec(self._engine.name) is not None:
            return Path(sys.executable)
        raise InputError(
            f"which Python has {self._engine.name}?", remedy=f"name it with --engine or {own}=/path/to/bin/python"
        )

    def installed(self, python: Path) -> Installed:
        """Look into the package's own version file, with this process's PYTHONPATH: packages that are compiled in place are found by it."""
        return Installed(ask_python(python, _ASK.format(package=self._engine.name), isolated=False) or None, "cuda")

    def observe(self, request: VerifyRequest, say: Say) -> Observed:
        """Measure over one start of TabbyAPI. Raises InputError where no checkout is named."""
        checkout = checkout_of(request)
        if checkout is None:
            raise InputError(
                f"{self._engine.name} is driven through TabbyAPI",
                remedy="name a checkout of it with --tabby or TIGHTFIT_TABBY",
            )
        return self.through_tabby(request, checkout, say)

    def through_tabby(self, request: VerifyRequest, checkout: Path, say: Say) -> Observed:
        """Put the load on TabbyAPI's API. It allots the cache that its config asks for, and says nothing of what more would fit."""
        name = self._engine.served_name(request.launch)
        variables = {"TABBYAPI": str(checkout)} | {k: os.environ[k] for k in ("PYTHONPATH",) if k in os.environ}
        with serving(
            request.launch / "run.sh", request.python, arguments=("--disable-auth", "true"), variables=variables
        ) as served:
            say(
                f"TabbyAPI answers after {served.start_seconds:.0f} s; {request.load.requests} requests, {request.load.arrival}"
            )

            ids = prompts_of(request)

            def prompt(tokens: int) -> str:
                return as_text(served, ids(tokens))

            sample = ask(served, request_body(name, prompt(16), min(48, request.load.output_tokens)))
            warm_up(served, name, request.load, prompt)
            timing = load(served, name, request.load, prompt, tool="tightfit through TabbyAPI")
            soaked = None if request.soak is None else soak(served, name, request.soak, self._engine.metrics, prompt)
        return Observed(None, None, (timing,), served.start_seconds, sample.text, tells_cache=False, soaked=soaked)


class GeneratorVerifier(TabbyVerifier):
    """ExLlamaV2 through its package's own generator, and through TabbyAPI too where a checkout is named."""

    def observe(self, request: VerifyRequest, say: Say) -> Observed:
        """Measure over one run of the driver, one start of TabbyAPI."""
        say(f"loads the model, looks how large a cache fits, then {request.load.requests} requests")
        seen = observed(run_driver(job_of(request), request.python), request)
        checkout = checkout_of(request)
        if checkout is None:
            return seen if request.soak is None else self.soaked(request, request.soak, seen, say)
        through = self.through_tabby(request, checkout, say)
        return replace(seen, loads=(*seen.loads, *through.loads), soaked=through.soaked)

    def soaked(self, request: VerifyRequest, asked: SoakRequest, seen: Observed, say: Say) -> Observed:
        """Run the driver once more on requests that fill the context, and watch the cards; those that arrive by chance are not put on."""
        workload = asked.workload
        if workload.rate is not None:
            note = "not soaked: ExLlamaV2's generator is driven by clients that wait; name a checkout of TabbyAPI with --tabby"
            return replace(seen, notes=(*seen.notes, note))
        clients = workload.concurrency or 1
        full = replace(request, load=Load(workload.input_tokens, workload.output_tokens, clients, _ROUNDS * clients))
        say(f"soaks: {full.load.requests} requests of {workload.context:,} tokens")
        job = job_of(full)
        with watching(Served("127.0.0.1", 0, request.launch, 0.0), None) as watch:
            found = run_driver({**job, "search_tokens": job["cache_size"]}, request.python)
        return replace(seen, soaked=Soaked(observed(found, full).loads[0], watch.summary()))


def checkout_of(request: VerifyRequest) -> Path | None:
    """Return the checkout of TabbyAPI: as asked, else as a variable names it. Raises InputError where it is none."""
    named = request.checkout or next((Path(os.environ[name]) for name in _CHECKOUT if os.environ.get(name)), None)
    if named is not None and not (named / "main.py").is_file():
        raise InputError(f"{named} is no checkout of TabbyAPI: it has no main.py", remedy="name it with --tabby")
    return None if named is None else named.absolute()


def as_text(served: Served, tokens: list[int]) -> str:
    """Return tokens as text, by the server's own tokenizer: TabbyAPI takes no ids as a prompt."""
    connection = http.client.HTTPConnection(served.host, served.port, timeout=60)
    try:
        return str(json.load(post(connection, "/v1/token/decode", json.dumps({"tokens": tokens}).encode()))["text"])
    finally:
        connection.close()


def job_of(request: VerifyRequest) -> dict[str, Any]:
    """Return what the driver is told: the launch files' model settings, how far to look for a larger cache, and the load.

    Raises InputError where the load arrives by chance: the generator is driven by clients that wait.
    """
    if request.load.rate is not None:
        raise InputError("ExLlamaV2's generator is driven by clients that wait", remedy="leave out --rate")
    settings = yaml.safe_load((request.launch / CONFIG).read_text(encoding="utf-8"))["model"]
    asked = request.load
    return {
        "model": str(request.result.resolve()), "cards": request.cards,
        **{key: settings[key] for key in ("max_seq_len", "cache_size", "cache_mode", "chunk_size")},
        "search_tokens": max(2 * int(request.kv_tokens.high), settings["cache_size"]),
        "input_tokens": asked.input_tokens, "output_tokens": asked.output_tokens, "concurrency": asked.concurrency,
        "requests": asked.requests,
    }  # fmt: skip


def run_driver(job: Mapping[str, Any], python: Path, driver: Path = DRIVER) -> dict[str, Any]:
    """Run the driver on a job in the engine's Python, in the environment of this process. Raises EngineError with its log's end."""
    with tempfile.TemporaryDirectory(prefix="tightfit-exllama-") as folder:
        place = Path(folder)
        (place / "job.json").write_text(json.dumps({**job, "out": str(place / "out.json")}))
        run_to_end(
            [str(python), str(driver), str(place / "job.json")], place / "log", seconds=_SECONDS,
            environment=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        found: dict[str, Any] = json.loads((place / "out.json").read_text())
        return found | {"cache_size": job["cache_size"]}


def observed(found: Mapping[str, Any], request: VerifyRequest) -> Observed:
    """Read what the driver found. Raises EngineError where the cache of the launch files does not fit."""
    if "answers" not in found:
        raise EngineError(
            f"a cache of {found['cache_size']:,} tokens, which the launch files ask for, does not fit: {found['kv_tokens']:,} do",
            remedy="free the card's memory, or plan for a smaller context or concurrency",
        )
    notes: tuple[str, ...] = ()
    if not found["paged"] and request.load.concurrency > 1:
        notes = (
            "this Python has no flash-attn 2.5.7 or newer, without which ExLlamaV2 answers one request at a time: so it was driven",
        )
    asked = replace(request.load, concurrency=found["clients"], requests=found["requests"])
    answers = [Answer(**answer) for answer in found["answers"]]
    timing = LoadTiming.of("ExLlamaV2's generator", asked, answers, found["seconds"], found["failed"])
    return Observed(
        found["kv_tokens"], None, (timing,), found["start_seconds"], answers[-1].text, found["version"], notes,
        tells_cache=found["kv_tokens"] is not None,
    )  # fmt: skip
