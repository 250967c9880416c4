"""What `apply` will take on this machine: seconds of each step, memory and disk, so that nobody finds out after 40 minutes.

Arithmetic of the steps (`passes.run.execute`): forwards of the calibration text, one Hessian for each distinct input, the columns'
compensation, what is measured before (which blocks to drop, every option of EXL2, what formats cost, which allocation wins), two
forwards of the held-out text. The rate is that of what computes here, a card's or the processor's, as `optimize calibrate` measured it or
as the catalog has it; each kind of step reaches a share of it that was measured once, on 2 quiet cores: `optimize apply
examples/smollm2-exl2.yaml`, and GPTQ W4 g64 of the same model (`benchmarks/quantize.py`). On cards no share was ever measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from passes import chain
from passes.base import Pass
from passes.blocks.memory import BATCH_TOKENS, LOGIT_BYTES, LOGIT_TOKENS, live_batches, waiting_bytes
from passes.errors import InputError
from passes.formats.dense import Dense
from passes.ir.model import Block, ModelIR, block_bytes
from passes.prune.depth import DepthPrune
from passes.quantize.exl2 import QuantizeExl2
from passes.quantize.mixed import QuantizeMixed
from passes.run.disk_need import scratch_bytes
from passes.text.self_written import SELF_BATCH
from passes.text.source import TextSource
from passes.text.split import FISHER_SEQUENCES, FITTED_SEQUENCES, JUDGED_TOKENS, judging
from planner.spec.spec import Spec, TextChoice
from targets.gpu import Gpu, find_gpu, this_cpu
from targets.machine.devices import installed_gpus
from targets.machine.profile import believed_profile
from targets.quantity import Basis, Quantity

#: Share of the matrix rate that forwards and compensation reach, and text that the model writes itself, a token at a time.
_RATE_SHARE, _WRITING_SHARE = 0.5, 0.22
#: Operations a weight (at `_RATE_SHARE`): all options of EXL2 tried on it; the chosen one's scales searched and rounded.
_OPTIONS_FLOPS, _SEARCH_FLOPS = 150e3, 20e3
#: Exponents that AWQ tries, each by the error tr(E H Eᵀ) of a group (`passes.algorithms.smoothing`). What outside tools take of our
#: walk's time: llm-compressor's GPTQ beside ours (docs/quantization.md); of the others it is assumed.
_SCALE_TRIES, _OUTSIDE = 20, 2.6
#: Allocations that are held against each other (`passes.run.resolve`).
_ALLOCATIONS = {QuantizeExl2: 3, QuantizeMixed: 3}
#: What torch, transformers and the tokenizer take before any weight: seconds, bytes.
_START_SECONDS, _PROCESS_BYTES = 10.0, 500 << 20
#: What a batch that runs takes, in what it takes while it waits. Bytes that a weight of the head
#: takes while it is quantized, and one of a block while the errors of two formats are held: measured once, as the shares were.
_RUNNING, _HEAD_BYTES, _ERROR_BYTES = 3, 32, 12
#: Forwards that a batch takes which does not wait in memory (`passes.walk.paused_batches`): one to the end, and one to each of three stops.
_AGAIN = 2.5
#: The rate of a machine that nothing is known about.
_UNKNOWN_FLOPS = 1e11


@dataclass(frozen=True, slots=True)
class Effort:
    """Seconds of work, peak resident memory and disk in bytes; `steps`: expected seconds of each."""

    seconds: Quantity
    memory_bytes: Quantity
    disk_bytes: int
    steps: Mapping[str, float]


def effort(spec: Spec, source: ModelIR, target: ModelIR, passes: Sequence[Pass]) -> Effort:
    """What running a chain takes on this machine."""
    steps = step_seconds(spec, source, target, passes)
    seconds = _START_SECONDS + sum(steps.values())
    memory = max(step_bytes(spec, source, target, passes).values())
    text = _source(spec.calibration) if chain.looks_at_text(passes, target) else None
    disk = scratch_bytes(source, target, passes, text, _source(spec.evaluation))
    # A GGUF file is decoded, a Hub model downloaded; a folder is read where it is.
    fetched = 0 if Path(spec.model).is_dir() else source.tensor_bytes
    return Effort(
        Quantity(seconds, seconds / 2, seconds * 2.5, Basis.ASSUMED),
        Quantity(memory, memory / 1.5, memory * 1.5, Basis.ASSUMED),
        disk + fetched,
        steps,
    )


def step_bytes(spec: Spec, source: ModelIR, target: ModelIR, passes: Sequence[Pass]) -> dict[str, float]:
    """Expected peak memory of each step, by the names that the certificate gives them; on cards theirs, else the process's."""
    largest = max((block for block, _ in source.decoder.counts), key=block_bytes)
    width = max((lin.in_features for lin in largest.linears if lin.quantizable), default=0)
    text, tokens = spec.calibration, 0
    if chain.looks_at_text(passes, target):
        tokens = text.samples * text.length
    item, batch = _item_bytes(source), max(BATCH_TOKENS, text.length)
    each = waiting_bytes(largest, source.hidden_size, item)
    running = _RUNNING * batch * each
    waiting = min(tokens, _live(source, largest, batch) * batch) * each
    # A block as it is stored, as it computes, as it will be stored; a Hessian, its factor, its inverse, what takes part in making them.
    block = 3 * block_bytes(largest) + (4 * 4 * width**2 if tokens else 0)
    head = sum(lin.weights for lin in target.outer if not isinstance(lin.storage, Dense))
    embedding = source.vocab_size * source.hidden_size * item
    logits = LOGIT_TOKENS * source.vocab_size * LOGIT_BYTES
    found = {
        "walk": max(block + running + waiting, _HEAD_BYTES * head),
        "evaluate": max(block + running, 2 * embedding + logits),
    }
    if tokens and text.dataset == "self":
        cached = sum(getattr(block.state, "elements_per_token", 0) * count for block, count in source.decoder.counts)
        rows = min(SELF_BATCH, text.samples)
        found["calibration text"] = source.tensor_bytes + rows * (
            text.length * cached * item + source.vocab_size * LOGIT_BYTES
        )
    if any(isinstance(one, QuantizeExl2 | QuantizeMixed) and not one.resolved for one in passes):
        found["compare allocations"] = found["walk"]
        found["measure formats"] = max(
            block + 2 * running + _ERROR_BYTES * sum(lin.weights for lin in largest.linears), embedding + logits
        )
    return {name: _PROCESS_BYTES + float(size) for name, size in found.items()}


def _live(ir: ModelIR, block: Block, batch_tokens: int) -> int:
    """Batches that wait in memory: on the card where one computes, as `passes.walk.walk` has it."""
    memory = int(_device().memory_bytes.value)
    return live_batches(block, ir.hidden_size, batch_tokens, _item_bytes(ir), memory)


def _item_bytes(ir: ModelIR) -> int:
    """Bytes of a number that is computed with, as `passes.blocks.devices.compute_dtype` chooses, which needs torch to look."""
    device = _device()
    half = not device.is_cpu or (ir.dtype == "BF16" and not device.instructions.isdisjoint({"avx512_bf16", "amx_bf16"}))
    return 2 if half and ir.dtype in ("BF16", "F16") else 4


def step_seconds(spec: Spec, source: ModelIR, target: ModelIR, passes: Sequence[Pass]) -> dict[str, float]:
    """Expected seconds of each step, by the names that the certificate gives them (of an outside tool, its name)."""
    text = spec.calibration
    tokens = text.samples * text.length if chain.looks_at_text(passes, target) else 0
    forward, head = _forward(source), 2 * source.vocab_size * source.hidden_size
    flops: dict[str, float] = {}
    if tokens and text.dataset == "self":
        flops["calibration text"] = tokens * (forward + head) * _RATE_SHARE / _WRITING_SHARE
    if any(isinstance(one, DepthPrune) and not one.resolved for one in passes):
        flops["measure depth"] = tokens * forward + 4 * min(tokens, JUDGED_TOKENS) * (forward + head)
    walk = tokens * (_forwards(source, tokens, text.length) * forward + _hessians(source)) + (
        _compensation(source) if tokens else 0
    )
    fisher, tried = (min(text.samples, count) * text.length for count in (FISHER_SEQUENCES, FITTED_SEQUENCES))
    waiting = [one for one in passes if not one.resolved and one.backend == "native" and type(one) in _ALLOCATIONS]
    if any(isinstance(one, QuantizeExl2) for one in passes):
        walk += _SEARCH_FLOPS * _weights(source)
    for one in waiting:
        if isinstance(one, QuantizeExl2):
            flops["measure EXL2"] = tokens * (forward + _hessians(source)) + _OPTIONS_FLOPS * _weights(source)
        flops["measure formats"] = 3 * fisher * (forward + head) + _compensation(source)
        fitted = walk - (tokens - tried) * (forward + _hessians(source))
        judged = 2 * judging(text.samples) * text.length * (forward + head)
        flops["compare allocations"] = _ALLOCATIONS[type(one)] * (fitted + judged)
    if any(str(getattr(one, "method", "")) == "awq" for one in passes):
        walk += _SCALE_TRIES * 2 * sum(count * _errors(block) for block, count in source.decoder.counts)
    if (tool := chain.outside(passes)) is not None:
        flops[tool.backend] = walk * _OUTSIDE
    else:
        flops["walk"] = walk
    flops["evaluate"] = 2 * spec.evaluation.samples * spec.evaluation.length * (forward + head)
    rate = _flops() * _RATE_SHARE
    return {name: count / rate for name, count in flops.items()}


def _flops() -> float:
    """Operations a second in bf16 of what the walk computes on: the first card, else the processor."""
    device = _device()
    profile, _ = believed_profile(device)
    measured = profile.probe.get("bf16_flops") if profile is not None else None
    return float(measured or device.bf16_flops or _UNKNOWN_FLOPS)


@cache
def _device() -> Gpu:
    """What computes here. Looked at once: cards are asked through their driver."""
    for name in installed_gpus():
        try:
            return find_gpu(name)
        except InputError:
            continue
    return this_cpu()


def _forwards(ir: ModelIR, tokens: int, length: int) -> float:
    """Forwards that the walk takes a token: one, and more for what does not wait in memory."""
    batch = max(BATCH_TOKENS, length)
    largest = max((block for block, _ in ir.decoder.counts), key=block_bytes)
    live = min(1.0, _live(ir, largest, batch) * batch / tokens) if tokens else 1.0
    return live + (1 - live) * _AGAIN


def _source(choice: TextChoice) -> TextSource:
    return TextSource(choice.dataset, choice.samples, choice.length, choice.seed)


def _forward(ir: ModelIR) -> float:
    """Operations a token of the decoder."""
    return 2 * sum(count * _active(block) for block, count in ir.decoder.counts)


def _hessians(ir: ModelIR) -> float:
    return 2 * sum(count * _inputs_squared(block) for block, count in ir.decoder.counts)


def _compensation(ir: ModelIR) -> float:
    return 2 * sum(count * _compensated(block) for block, count in ir.decoder.counts)


def _weights(ir: ModelIR) -> float:
    return sum(count * lin.weights for block, count in ir.decoder.counts for lin in block.linears if lin.quantizable)


def _active(block: Block) -> float:
    return sum(lin.out_features * lin.in_features * min(lin.active, lin.copies) for lin in block.linears)


def _inputs_squared(block: Block) -> float:
    """K² of each distinct input, half of it: the product is symmetric."""
    inputs = {
        lin.reads or lin.name: lin.in_features**2 * min(lin.active, lin.copies)
        for lin in block.linears
        if lin.quantizable
    }
    return sum(inputs.values()) / 2


def _errors(block: Block) -> float:
    """Operations of tr(E H Eᵀ) over a block's matrices."""
    return sum(lin.copies * lin.out_features * lin.in_features**2 for lin in block.linears if lin.quantizable)


def _compensated(block: Block) -> float:
    return sum(
        lin.copies * (lin.out_features * lin.in_features**2 + lin.in_features**3)
        for lin in block.linears
        if lin.quantizable
    )
