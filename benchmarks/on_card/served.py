"""vLLM started from emitted launch files on the whole 8B shape: KV tokens, and a load at four concurrencies, against what `check` says.

Only config, tokenizer and launch files are written; the engine makes the weights up (`load-format: dummy`, the one line that is added), which
changes neither memory nor speed.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.on_card.shapes import save_config, served_config
from benchmarks.on_card.staging import Notes, Setup
from benchmarks.on_card.tools import find_tool
from passes import chain
from passes.base import Pass
from passes.files.atomic import write_json
from passes.formats.awq import Awq
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.format import Format
from passes.formats.gptq import Gptq
from passes.ir.model import ModelIR
from passes.ir.quant_config.write import quantization_config
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.quantize.quantize import Quantize
from targets.engines.engine import Engine, ServerLog, Settings, find_engine
from targets.gpu import Gpu, find_gpu
from targets.launch.request import LaunchRequest
from targets.launch.write import FOLDER, write_launch
from targets.machine.devices import installed_gpus
from targets.quantity import Quantity
from targets.serve.process import EngineError, Served, serving
from targets.workload import Workload

_NAME = "on-card"
CONTEXT, INPUT, OUTPUT = 8192, 512, 64
#: Requests at once, and how many in all: enough that the mean is that of a steady load.
CONCURRENCY = {1: 4, 8: 24, 32: 96, 128: 256}
#: Seconds of a stage after which no load is begun: the engine is still to be stopped.
_LOADS_UNTIL_S = 90.0
#: What the engine needs where FlashInfer is absent, and what keeps it to itself.
_ENVIRONMENT = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
_FORMATS: dict[str, Format] = {
    "w4a16": PackQuantized(4, 128), "fp8": FloatQuantized(), "w8a8": IntQuantized(), "awq": Awq(128), "gptq": Gptq(4, 128),
}  # fmt: skip
#: Whose checkpoints carry scales of an fp8 cache.
_WITH_SCALES = ("w4a16", "fp8", "w8a8", "mixed")
#: Lines of a start's log that say where memory and time went.
_TELLING = (
    "KV cache",
    "Model loading took",
    "memory",
    "graph",
    "torch.compile",
    "kernel",
    "Kernel",
    "attention backend",
    "init engine",
)
_TELLING_LINES = 40


@dataclass(frozen=True)
class Case:
    """What is served: the finished description, by which engine, on which card, how it is set."""

    target: ModelIR
    engine: Engine
    card: Gpu
    settings: Settings

    def workload(self, concurrency: int) -> Workload:
        """So many requests at once."""
        return Workload(self.context, concurrency, self.input_tokens, self.output_tokens)

    @property
    def context(self) -> int:
        """Tokens a sequence may have."""
        return 2048 if self.engine.device == "cpu" else CONTEXT

    @property
    def input_tokens(self) -> int:
        """Tokens of a prompt."""
        return 64 if self.engine.device == "cpu" else INPUT

    @property
    def output_tokens(self) -> int:
        """Tokens of an answer."""
        return 8 if self.engine.device == "cpu" else OUTPUT


def passes_of(ir: ModelIR, form: str, *, fp8_cache: bool) -> tuple[Pass, ...]:
    """The chain that writes a format. `mixed`: the first half of the layers in W4A16, the rest in W8A8.

    Scales of an fp8 cache are in the checkpoint where its format carries them, as plans have it; the engine makes them up too, so what
    it generates says nothing, and kernels of processors, which look at their sign, refuse them.
    """
    weights: tuple[Pass, ...] = ()
    if form == "mixed":
        layers = range(len(ir.decoder.layers) // 2, len(ir.decoder.layers))
        names = (
            ir.decoder.layer_prefix(layer) + linear.name
            for layer in layers
            for linear in ir.decoder.block(layer).linears
            if linear.quantizable
        )
        weights = (Quantize("gptq", _FORMATS["w4a16"], tuple((name, _FORMATS["w8a8"]) for name in names)),)
    elif form != "bf16":
        weights = (Quantize("gptq", _FORMATS[form]),)
    return (*weights, *((KVCachePass("fp8", form in _WITH_SCALES),) if fp8_cache else ()))


def serve(setup: Setup, note: Notes, form: str, fp8_cache: bool) -> None:
    """One start of the engine on one format; raises NotHereError where there is no vLLM."""
    tool = find_tool(setup, "vllm")
    case, folder = prepared(setup, form, tool.version, fp8_cache=fp8_cache)
    kv = kv_estimate(case)
    note(form=form, fp8_cache=fp8_cache, engine=case.engine.name, version=tool.version, context=case.context)
    note(predicted_kv=_interval(kv.tokens), predicted_memory=_memory(case))
    os.environ |= _ENVIRONMENT
    began = time.monotonic()
    with serving(folder / FOLDER / "run.sh", tool.python, start_seconds=100) as served:
        log = served.log.read_text(errors="replace")
        note(start_s=round(served.start_seconds, 1), log=_telling(log))
        server = case.engine.server
        assert server is not None
        _note_kv(note, kv.tokens, server, log)
        try:
            _note_loads(setup, note, case, served, began)
        except EngineError:
            print(served.log.read_text(errors="replace"), flush=True)
            note(log_after=_errors(served.log.read_text(errors="replace")))
            raise
    note(whole_s=round(time.monotonic() - began, 1))


def prepared(setup: Setup, form: str, version: str, *, fp8_cache: bool) -> tuple[Case, Path]:
    """Write config, tokenizer and launch files of a format into a folder of the work folder; return what is served, and the folder."""
    folder = setup.work / "served" / f"{form}{'-fp8kv' if fp8_cache else ''}"
    shutil.rmtree(folder, ignore_errors=True)
    config = served_config(setup)
    save_config(folder, config)
    source = open_model(folder).ir
    passes = passes_of(source, form, fp8_cache=fp8_cache)
    if reasons := chain.illegal(source, passes):
        raise ValueError(reasons[0].message)
    target = chain.rewrite(source, passes)
    quantized = quantization_config(target)
    if quantized is not None:
        write_json(folder / "config.json", config | {"quantization_config": quantized})
    cards = installed_gpus()
    engine = find_engine("vllm" if cards else "vllm-cpu")
    settings = Settings(version=version, kv_cache_memory_bytes=None if cards else 64 << 20, enforce_eager=not cards)
    case = Case(target, engine, find_gpu(cards[0] if cards else "cpu"), settings)
    request = LaunchRequest(
        engine.name, version, form, _NAME, target, settings, Workload(case.context, None, case.input_tokens, case.output_tokens),
        settings.kv_cache_memory_bytes or 0,
    )  # fmt: skip
    write_launch(folder, engine.launch(request).files)
    with (folder / FOLDER / "vllm.yaml").open("a") as file:
        file.write("load-format: dummy\n")
    return case, folder


def kv_estimate(case: Case) -> Any:
    """What `check` says of the cache."""
    return case.engine.memory(case.target, case.card, case.settings, case.workload(1)).kv


def _memory(case: Case) -> dict[str, Any]:
    """What `check` says of the card's memory, GiB."""
    memory = case.engine.memory(case.target, case.card, case.settings, case.workload(1)).memory
    return {
        name: round(getattr(memory, name).value / (1 << 30), 2)
        for name in ("weights", "kv_cache", "activations", "non_torch", "cuda_graphs", "budget")
    }


def _note_kv(note: Notes, expected: Quantity, server: ServerLog, log: str) -> None:
    """KV tokens as the engine prints them, against the interval."""
    printed = server.kv_tokens(log)
    error = None if printed is None else round(expected.value / printed - 1, 4)
    inside = printed is not None and expected.low <= printed <= expected.high
    note(kv_tokens=printed, kv_error=error, kv_inside=inside, max_concurrency=server.max_concurrency(log))
    said = (
        "not printed" if printed is None or error is None else f"{printed:,}, said {expected.value:,.0f} ({error:+.1%})"
    )
    note(headline=f"starts in {note.found['start_s']:.0f} s; KV tokens {said}{'' if inside else ', OUTSIDE'}")


def _note_loads(setup: Setup, note: Notes, case: Case, served: Served, began: float) -> None:
    """The loads that there is time for, after one for what is made on first use."""
    from targets.serve.load import Load, load

    load(served, _NAME, Load(case.input_tokens, case.output_tokens, 2, 4))
    for concurrency, requests in CONCURRENCY.items():
        if setup.shape == "tiny" and concurrency > 8:
            continue
        if time.monotonic() - began > _LOADS_UNTIL_S:
            note(left_out=[*note.found.get("left_out", []), concurrency])
            continue
        _note_load(note, case, served, concurrency, requests)


def _note_load(note: Notes, case: Case, served: Served, concurrency: int, requests: int) -> None:
    """One load, beside what is predicted of it."""
    from targets.serve.load import Load, load

    timing = load(served, _NAME, Load(case.input_tokens, case.output_tokens, concurrency, requests))
    estimate = case.engine.estimate(case.target, case.card, case.settings, case.workload(concurrency)).speed
    loads = [*note.found.get("loads", []), {
        "concurrency": concurrency, "requests": requests, "failed": timing.failed,
        "input_tokens": case.input_tokens, "output_tokens": case.output_tokens,
        "ttft_ms": round(timing.ttft_ms.mean, 2), "tpot_ms": round(timing.tpot_ms.mean, 3), "tok_s": round(timing.tok_s, 1),
        "predicted_ttft_ms": _interval(estimate.ttft_ms), "predicted_tpot_ms": _interval(estimate.tpot_ms),
        "predicted_tok_s": _interval(estimate.throughput_tok_s),
    }]  # fmt: skip
    note(loads=loads)
    if concurrency == 1:
        note(headline=f"{note.found['headline']}; TPOT {timing.tpot_ms.mean:.1f} ms, said {estimate.tpot_ms.value:.1f}")


def _interval(quantity: Quantity) -> list[float]:
    """Value, low, high."""
    return [round(number, 3) for number in (quantity.value, quantity.low, quantity.high)]


def _errors(log: str) -> list[str]:
    """The lines of a log that name errors, the first of them: the cause stands far above the end."""
    return [line[-240:] for line in log.splitlines() if re.search(r"\b\w+(Error|Exception)\b: ", line)][:10]


def _telling(log: str) -> list[str]:
    """The lines of a start's log that say where memory and time went."""
    return [line[-240:] for line in log.splitlines() if any(word in line for word in _TELLING)][-_TELLING_LINES:]
