"""What `apply` will take on this machine: seconds of each step, memory and disk, so that nobody finds out after 40 minutes.

Arithmetic of the steps of the job's graph (`passes.run.job_graph`): forwards of the calibration text, one Hessian for each distinct
input, the columns' compensation, two forwards of the held-out text, and what each pass says of its own (`Pass.cost`). The rate is that of
what computes here, a card's or the processor's, as `optimize calibrate` measured it or as the catalog has it; each kind of step reaches a
share of it that was measured once, on 2 quiet cores: `optimize apply examples/smollm2-exl2.yaml`, and GPTQ W4 g64 of the same model
(`benchmarks/quantize.py`). On cards no share was ever measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from passes import chain
from passes.base import Pass
from passes.blocks.memory import BATCH_TOKENS, LOGIT_BYTES, LOGIT_TOKENS, live_batches, waiting_bytes, waiting_room
from passes.errors import InputError
from passes.ir.model import Block, ModelIR, block_bytes
from passes.ir.operations import forward_operations, head_operations
from passes.run.disk_need import scratch_bytes
from passes.run.job_graph import CALIBRATION_TEXT, EVALUATE, WALK, job_graph, maker_node, pass_node
from passes.steps.cost import StepCost, WalkSize
from passes.steps.graph import WorkGraph, WorkNode, WorkStep
from passes.text.self_written import SELF_BATCH
from passes.text.source import TextSource
from planner.spec.spec import Spec, TextChoice
from targets.gpu import Gpu, find_gpu, this_cpu
from targets.machine.devices import installed_gpus
from targets.machine.profile import believed_profile
from targets.quantity import Basis, Quantity

#: Share of the matrix rate that forwards and compensation reach, and text that the model writes itself, a token at a time.
_RATE_SHARE, _WRITING_SHARE = 0.5, 0.22
#: What outside tools take of our walk's time: llm-compressor's GPTQ beside ours (docs/quantization.md); of the others it is assumed.
_OUTSIDE = 2.6
#: What torch, transformers and the tokenizer take before any weight: seconds, bytes.
_START_SECONDS, _PROCESS_BYTES = 10.0, 500 << 20
#: What a batch that runs takes, in what it takes while it waits. Bytes that a weight of the head
#: takes while it is quantized: measured once, as the shares were.
_RUNNING, _HEAD_BYTES = 3, 32
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
    graph = forecast(spec, source, target, passes)
    steps = _step_seconds(graph)
    seconds = _START_SECONDS + sum(steps.values())
    memory = max(step.peak_bytes for step in graph.steps if step.peak_bytes is not None)
    text = _source(spec.calibration) if chain.needs_text(passes, target) else None
    disk = scratch_bytes(source, target, passes, text, _source(spec.evaluation))
    # A GGUF file is decoded, a Hub model downloaded; a folder is read where it is.
    fetched = 0 if Path(spec.model).is_dir() else source.tensor_bytes
    return Effort(
        Quantity(seconds, seconds / 2, seconds * 2.5, Basis.ASSUMED),
        Quantity(memory, memory / 1.5, memory * 1.5, Basis.ASSUMED),
        disk + fetched,
        steps,
    )


def walk_size(spec: Spec, source: ModelIR, target: ModelIR, passes: Sequence[Pass]) -> WalkSize:
    """What one walk takes on this machine; without a sequence where nothing looks at text."""
    samples = spec.calibration.samples if chain.needs_text(passes, target) else 0
    length = spec.calibration.length
    largest = max((block for block, _ in source.decoder.counts), key=block_bytes)
    width = max((lin.in_features for lin in largest.linears if lin.quantizable), default=0)
    tokens = samples * length
    item, batch = _item_bytes(source), max(BATCH_TOKENS, length)
    token_bytes = waiting_bytes(largest, source.hidden_size, item)
    running = _RUNNING * batch * token_bytes
    waiting = min(tokens, _live(source, largest, batch) * batch) * token_bytes
    # A block as it is stored, as it computes, as it will be stored; a Hessian, its factor, its inverse, what takes part in making them.
    block = 3 * block_bytes(largest) + (4 * 4 * width**2 if tokens else 0)
    head = sum(lin.weights for lin in target.outer if lin.storage.is_quantized)
    return WalkSize(
        samples, length,
        forwards=_forwards(source, tokens, length),
        memory=max(block + running + waiting, _HEAD_BYTES * head),
        block_memory=block, batch_memory=running,
        outer_memory=_embedding_bytes(source) + LOGIT_TOKENS * source.vocab_size * LOGIT_BYTES,
    )  # fmt: skip


def forecast(spec: Spec, source: ModelIR, target: ModelIR, passes: Sequence[Pass]) -> WorkGraph:
    """Return the graph of the job with the expected seconds and peak memory of its steps; on cards theirs, else the process's.

    What takes next to nothing has no seconds; what adds nothing to the process's memory, no bytes.
    """
    graph = job_graph(passes, needs_text=chain.needs_text(passes, target))
    costs = _job_costs(spec, source, passes, walk_size(spec, source, target, passes))
    rate = _flops() * _RATE_SHARE

    def steps(node: WorkNode) -> Iterator[WorkStep]:
        known = costs.get(node.name, {})
        for name in dict.fromkeys((*(step.name for step in node.steps), *known)):
            cost = known.get(name, StepCost())
            walked = name == node.name and name in known  # the walk of no text takes 0 s, which is said
            seconds = cost.operations / rate if cost.operations or walked else None
            yield WorkStep(name, seconds, _PROCESS_BYTES + float(cost.memory) if cost.memory else None)

    return graph.with_steps({node.name: tuple(steps(node)) for node in graph.nodes})


def _job_costs(
    spec: Spec, source: ModelIR, passes: Sequence[Pass], walk: WalkSize
) -> dict[str, Mapping[str, StepCost]]:
    """What the steps of each node of the job's graph take."""
    token = forward_operations(source) + head_operations(source)
    costs: dict[str, Mapping[str, StepCost]] = {}
    if walk.tokens and spec.calibration.dataset == "self":
        costs[CALIBRATION_TEXT] = {CALIBRATION_TEXT: _writing_cost(spec.calibration, source, walk, token)}
    operations, memory = walk.operations(source), walk.memory
    for number, pass_ in enumerate(passes, start=1):
        own = dict(pass_.cost(source, walk))
        added = own.pop(WALK, StepCost())
        operations, memory = operations + added.operations, max(memory, added.memory)
        costs[pass_node(number, pass_)] = own
    maker = maker_node(passes)
    costs[maker] = {maker: StepCost(operations if maker == WALK else operations * _OUTSIDE, memory)}
    judged = max(walk.block_memory + walk.batch_memory, _embedding_bytes(source) + walk.outer_memory)
    costs[EVALUATE] = {EVALUATE: StepCost(2 * spec.evaluation.samples * spec.evaluation.length * token, judged)}
    return costs


def _writing_cost(text: TextChoice, source: ModelIR, walk: WalkSize, token: float) -> StepCost:
    """What it takes the model to write the text itself. `token`: operations of one."""
    cached = sum(getattr(block.state, "elements_per_token", 0) * count for block, count in source.decoder.counts)
    written = text.length * cached * _item_bytes(source) + source.vocab_size * LOGIT_BYTES
    memory = source.tensor_bytes + min(SELF_BATCH, text.samples) * written
    return StepCost(walk.tokens * token * _RATE_SHARE / _WRITING_SHARE, memory)


def _step_seconds(graph: WorkGraph) -> dict[str, float]:
    """Expected seconds of the steps, by the names that the certificate gives them (of an outside tool, its name)."""
    seconds: dict[str, float] = {}
    for step in graph.steps:
        if step.seconds is not None:
            seconds[step.name] = seconds.get(step.name, 0.0) + step.seconds
    return seconds


def _embedding_bytes(ir: ModelIR) -> int:
    return ir.vocab_size * ir.hidden_size * _item_bytes(ir)


def _live(ir: ModelIR, block: Block, batch_tokens: int) -> int:
    """Batches that wait in memory: on the card where one computes, as `passes.walk.walk` has it."""
    device = _device()
    room = waiting_room(int(device.memory_bytes.value), card=not device.is_cpu)
    return live_batches(block, ir.hidden_size, batch_tokens, _item_bytes(ir), room)


def _item_bytes(ir: ModelIR) -> int:
    """Bytes of a number that is computed with, as `passes.blocks.devices.compute_dtype` chooses, which needs torch to look."""
    device = _device()
    half = not device.is_cpu or (ir.dtype == "BF16" and not device.instructions.isdisjoint({"avx512_bf16", "amx_bf16"}))
    return 2 if half and ir.dtype in ("BF16", "F16") else 4


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
