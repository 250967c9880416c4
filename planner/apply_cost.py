"""What `apply` will take on a device: seconds of each step, memory and disk, so that nobody finds out after 40 minutes.

Arithmetic of the steps of the job's graph (`passes.run.job_graph`): forwards of the calibration text, one Hessian for each distinct
input, the columns' compensation, two forwards of the held-out text, and what each pass says of its own (`Pass.cost`). How fast a device
does each kind of work is data, `apply_rates.json`: a share of the rate that a large 16-bit product reaches there (as `optimize calibrate`
measured it, else as the catalog has it), seconds of each of what goes one after the other, bytes a second of what is moved; each figure
with where it comes from, `assumed` until it was measured. The same arithmetic serves this machine and the card of a plan.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

from passes import chain
from passes.base import Pass
from passes.blocks.memory import (
    BATCH_TOKENS,
    CARD_SHARE,
    LOGIT_BYTES,
    LOGIT_TOKENS,
    live_batches,
    waiting_bytes,
    waiting_room,
)
from passes.ir.model import Block, ModelIR, block_bytes
from passes.ir.operations import forward_operations, head_operations
from passes.record import dataclass
from passes.run.disk_need import scratch_bytes
from passes.run.job_graph import CALIBRATION_TEXT, EVALUATE, WALK, job_graph, maker_node, pass_node
from passes.steps.cost import StepCost, WalkSize, Work
from passes.steps.graph import WorkGraph, WorkNode, WorkStep
from passes.text.self_written import CARD_BATCH, SELF_BATCH, SELF_MEMORY_SHARE
from passes.text.source import TextSource
from planner.machine import computing
from planner.plan.effort import Effort
from planner.spec.spec import Spec, TextChoice
from targets.gpu import Gpu, processor
from targets.machine.profile import PRODUCT_SHARE, believed_profile
from targets.quantity import Basis, Quantity

#: What outside tools take of our walk's time, on the processor and on a card: llm-compressor's GPTQ beside ours (docs/quantization.md,
#: docs/cards.md); of the others it is assumed.
_OUTSIDE, _OUTSIDE_CARD = 2.6, 6.0
#: What torch, transformers and the tokenizer take before any weight: seconds; bytes of the process, and with CUDA's libraries; bytes on
#: a card, its context not counted.
_START_SECONDS, _PROCESS_BYTES, _CUDA_PROCESS_BYTES, _CARD_BYTES = 10.0, 500 << 20, 3 << 30, 100 << 20
#: What a batch that runs takes, in what it takes while it waits. Bytes that a weight of the head
#: takes while it is quantized: measured once, as the shares were.
_RUNNING, _HEAD_BYTES = 3, 32
#: The least that a forecast of memory may be off by before work is refused.
_LEAST = 1.25
#: Forwards that a batch takes which does not wait in memory (`passes.walk.paused_batches`): one to the end, and one to each of three stops.
_AGAIN = 2.5
#: What does the work that a card has too little memory for, whichever machine plans: assumed, a workstation's processor.
_BESIDE = ("a workstation's processor", 16, frozenset({"avx2"}), 128 << 30)
#: The rate of a device that nothing is known about.
_UNKNOWN_FLOPS = 1e11


def no_effort(device: Gpu | None = None) -> Effort:
    """Return the effort of a plan that has nothing made: the checkpoint is served as it is."""
    nothing = Quantity.exact(0)
    return Effort(nothing, nothing, 0, {}, (device or computing()).name)


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a device does one kind of work: one of `share` of its product rate, `seconds` of each, `bytes_per_s`; and whence it is."""

    basis: Basis
    source: str
    share: float | None = None
    seconds: float | None = None
    bytes_per_s: float | None = None

    def seconds_of(self, amount: float, product_rate: float) -> float:
        """Return the seconds of so many operations, things, or bytes. `product_rate`: operations a second of a large product."""
        if self.share is not None:
            return amount / (product_rate * self.share)
        return amount * self.seconds if self.seconds is not None else amount / (self.bytes_per_s or math.inf)


@dataclass(frozen=True, slots=True)
class Rates:
    """A kind of device: its rates by the fields of `Work` (what has none is part of the others), and how far seconds may be off.

    `memory`: bytes of each number of the largest Hessian while it is factorized (`hessian_number`), of each weight of the matrices that are
    stored together (`group_weight`), of each byte that waiting batches may take (`waiting`). `start`: seconds of the first block beside.
    """

    by_kind: Mapping[str, Rate]
    memory: Mapping[str, float]
    start: float
    low: float
    high: float

    @property
    def measured(self) -> bool:
        """Whether every rate is."""
        return all(rate.basis is Basis.MEASURED for rate in self.by_kind.values())

    def seconds(self, work: Work, product_rate: float) -> float:
        """Return the seconds of a work on a device whose large products reach `product_rate` operations a second."""
        known = ((getattr(work, kind), rate) for kind, rate in self.by_kind.items())
        return sum(rate.seconds_of(amount, product_rate) for amount, rate in known)


@cache
def rates_of(kind: str) -> Rates:
    """Return the rates of a `processor` or a `card`, as `apply_rates.json` has them."""
    stored = json.loads(Path(__file__).with_name("apply_rates.json").read_text(encoding="utf-8"))[kind]
    low, high = stored.pop("spread")
    start = float(stored.pop("start")["seconds"])
    memory = {name: figure["bytes"] for name, figure in stored.pop("memory").items()}
    unknown = stored.keys() - {field.name for field in fields(Work)}
    if unknown:
        raise ValueError(f"apply_rates.json: no kinds of work: {', '.join(sorted(unknown))}")
    return Rates(
        {name: Rate(**rate | {"basis": Basis(rate["basis"])}) for name, rate in stored.items()},
        memory,
        start,
        low,
        high,
    )


def effort(spec: Spec, source: ModelIR, target: ModelIR, passes: Sequence[Pass], device: Gpu | None = None) -> Effort:
    """Return what running a chain takes on a device; by default on what computes here."""
    device = device or computing()
    rates, walk = _rates(device), walk_size(spec, source, target, passes, device)
    costs = _job_costs(spec, source, passes, walk, device)
    graph = _with_costs(job_graph(passes, needs_text=chain.needs_text(passes, target)), costs, device)
    steps = _step_seconds(graph)
    seconds = _START_SECONDS + sum(steps.values())
    memory = max(step.peak_bytes for step in graph.steps if step.peak_bytes is not None)
    whole = max((cost.memory for known in costs.values() for cost in known.values() if cost.whole), default=0.0)
    text = _source(spec.calibration) if chain.needs_text(passes, target) else None
    disk = scratch_bytes(source, target, passes, text, _source(spec.evaluation))
    basis = Basis.CALIBRATED if rates.measured and _measured_flops(device) else Basis.ASSUMED
    # A GGUF file is decoded, a Hub model downloaded; a folder is read where it is.
    fetched = 0 if Path(spec.model).is_dir() else source.tensor_bytes
    return Effort(
        Quantity(seconds, seconds * rates.low, seconds * rates.high, basis),
        Quantity(memory, max(whole / 1.5, _least(memory, walk, device)), memory * 1.5, Basis.ASSUMED),
        disk + fetched,
        steps,
        device.name,
        None if device.is_cpu else _host_memory(source, walk, device),
    )


def hours_of(spec: Spec, source: ModelIR, target: ModelIR, passes: Sequence[Pass], card: Gpu) -> float:
    """Return the hours that running a chain takes on a card, or where that has too little memory for it on a server's processor."""
    work = effort(spec, source, target, passes, card)
    if not (card.is_cpu or holds(work, card)):
        work = effort(spec, source, target, passes, processor(*_BESIDE))
    return work.seconds.value / 3600


def holds_whole(source: ModelIR, device: Gpu) -> bool:
    """Return whether a device has room for the whole model, as writing its own calibration text takes."""
    return source.tensor_bytes <= SELF_MEMORY_SHARE * device.memory_bytes.value


def holds(work: Effort, device: Gpu) -> bool:
    """Return whether a device has the memory that work takes at the least."""
    return work.memory_bytes.low <= device.memory_bytes.value


def _least(peak: float, walk: WalkSize, device: Gpu) -> float:
    """The bytes below which work is refused: on a card those of a walk whose batches and states wait elsewhere. Who writes the text, which
    is the first step, looks itself whether there is room.
    """
    return peak / 1.5 if device.is_cpu else min(peak / 1.5, (_CARD_BYTES + walk.least_memory) / _LEAST)


def _host_memory(source: ModelIR, walk: WalkSize, device: Gpu) -> Quantity:
    """Of the process beside a card: CUDA's libraries, a block as it is read and as it is written, hidden states kept off the card."""
    largest = max(block_bytes(block) for block, _ in source.decoder.counts)
    beside = 0.0 if _stays(source, walk, device) else _states(source, walk, device)
    value = _CUDA_PROCESS_BYTES + 2 * largest + beside
    return Quantity(value, value / 2, value * 2, Basis.ASSUMED)


def walk_size(spec: Spec, source: ModelIR, target: ModelIR, passes: Sequence[Pass], device: Gpu) -> WalkSize:
    """Return what one walk takes on a device; without a sequence where nothing looks at text."""
    samples = spec.calibration.samples if chain.needs_text(passes, target) else 0
    length = spec.calibration.length
    largest = max((block for block, _ in source.decoder.counts), key=block_bytes)
    tokens = samples * length
    item, batch = _item_bytes(source, device), max(BATCH_TOKENS, length)
    token_bytes = waiting_bytes(largest, source.hidden_size, item)
    running = _RUNNING * batch * token_bytes
    live = _live(source, largest, batch, device)
    rates = _rates(device)
    waiting = rates.memory["waiting"] * min(tokens, live * batch) * token_bytes
    # A block as it is stored, as it computes, as it will be stored.
    block = 3 * block_bytes(largest) + _group_bytes(largest, rates, looks=tokens > 0)
    head = _HEAD_BYTES * sum(lin.weights for lin in target.outer if lin.storage.is_quantized)
    size = WalkSize(
        samples, length,
        forwards=_forwards(tokens, live * batch),
        memory=max(block + running + waiting, head),
        least_memory=max(block + running + rates.memory["waiting"] * min(tokens, batch) * token_bytes, head),
        block_memory=block, batch_memory=running,
        outer_memory=_embedding_bytes(source, device) + LOGIT_TOKENS * source.vocab_size * LOGIT_BYTES,
    )  # fmt: skip
    if not _stays(source, size, device):
        return size
    # A batch that is through takes with it what it brought into the block before.
    return replace(size, memory=size.memory + _states(source, size, device) / 2)


def forecast(
    spec: Spec, source: ModelIR, target: ModelIR, passes: Sequence[Pass], device: Gpu | None = None
) -> WorkGraph:
    """Return the graph of the job with the expected seconds and peak memory of its steps on a device: a card's own, else the process's.

    What takes next to nothing has no seconds; what adds nothing to the memory, no bytes. By default on what computes here.
    """
    device = device or computing()
    costs = _job_costs(spec, source, passes, walk_size(spec, source, target, passes, device), device)
    return _with_costs(job_graph(passes, needs_text=chain.needs_text(passes, target)), costs, device)


def _with_costs(graph: WorkGraph, costs: Mapping[str, Mapping[str, StepCost]], device: Gpu) -> WorkGraph:
    """The graph of a job with what its steps take on a device, given their costs by node."""
    rates, product = _rates(device), product_flops(device)
    before = _PROCESS_BYTES if device.is_cpu else _CARD_BYTES
    first = next(iter(step for known in costs.values() for step, cost in known.items() if cost.work), None)

    def steps(node: WorkNode) -> Iterator[WorkStep]:
        known = costs.get(node.name, {})
        for name in dict.fromkeys((*(step.name for step in node.steps), *known)):
            cost = known.get(name, StepCost())
            walked = name == node.name and name in known  # the walk of no text takes 0 s, which is said
            seconds = rates.seconds(cost.work, product) if cost.work or walked else None
            if seconds is not None and name == first:
                seconds += rates.start
            yield WorkStep(name, seconds, before + float(cost.memory) if cost.memory else None)

    return graph.with_steps({node.name: tuple(steps(node)) for node in graph.nodes})


def product_flops(device: Gpu) -> float:
    """Return the operations a second that a large 16-bit product reaches on a device: measured, else as the catalog has it."""
    listed = (device.bf16_flops or _UNKNOWN_FLOPS) * (1.0 if device.is_cpu else PRODUCT_SHARE)
    return _measured_flops(device) or listed


def _measured_flops(device: Gpu) -> float | None:
    profile, _ = believed_profile(device)
    measured = None if profile is None else profile.probe.get("bf16_flops")
    return None if measured is None else float(measured)


def _rates(device: Gpu) -> Rates:
    return rates_of("processor" if device.is_cpu else "card")


def _job_costs(
    spec: Spec, source: ModelIR, passes: Sequence[Pass], walk: WalkSize, device: Gpu
) -> dict[str, Mapping[str, StepCost]]:
    """What the steps of each node of the job's graph take."""
    token = forward_operations(source) + head_operations(source)
    costs: dict[str, Mapping[str, StepCost]] = {}
    if walk.tokens and spec.calibration.dataset == "self" and (device.is_cpu or holds_whole(source, device)):
        costs[CALIBRATION_TEXT] = {CALIBRATION_TEXT: _writing_cost(spec.calibration, source, walk, token, device)}
    work, memory = walk.work(source), walk.memory
    for number, pass_ in enumerate(passes, start=1):
        own = dict(pass_.cost(source, walk))
        added = own.pop(WALK, StepCost())
        work, memory = work + added.work, max(memory, added.memory)
        costs[pass_node(number, pass_)] = own
    maker = maker_node(passes)
    costs[maker] = {
        maker: StepCost(work if maker == WALK else work * (_OUTSIDE if device.is_cpu else _OUTSIDE_CARD), memory)
    }
    judged = max(walk.block_memory + walk.batch_memory, _embedding_bytes(source, device) + walk.outer_memory)
    judging = Work(forwards=2 * spec.evaluation.samples * spec.evaluation.length * token, moved=2 * source.tensor_bytes)
    costs[EVALUATE] = {EVALUATE: StepCost(judging, judged)}
    return costs


def _writing_cost(text: TextChoice, source: ModelIR, walk: WalkSize, token: float, device: Gpu) -> StepCost:
    """What it takes the model to write the text itself. `token`: operations of one."""
    cached = sum(getattr(block.state, "elements_per_token", 0) * count for block, count in source.decoder.counts)
    written = text.length * cached * _item_bytes(source, device) + source.vocab_size * LOGIT_BYTES
    room = max(0.0, SELF_MEMORY_SHARE * (device.memory_bytes.value - source.tensor_bytes))
    fitting = 1 << max(0, int(room // written).bit_length() - 1)
    rows = SELF_BATCH if device.is_cpu else min(CARD_BATCH, fitting)
    memory = source.tensor_bytes + min(rows, text.samples) * written
    positions = -(-text.samples // rows) * text.length * len(source.decoder.layers)
    return StepCost(Work(writing=walk.tokens * token, positions=positions, moved=source.tensor_bytes), memory)


def _step_seconds(graph: WorkGraph) -> dict[str, float]:
    """Expected seconds of the steps, by the names that the certificate gives them (of an outside tool, its name)."""
    seconds: dict[str, float] = {}
    for step in graph.steps:
        if step.seconds is not None:
            seconds[step.name] = seconds.get(step.name, 0.0) + step.seconds
    return seconds


def _embedding_bytes(ir: ModelIR, device: Gpu) -> int:
    return ir.vocab_size * ir.hidden_size * _item_bytes(ir, device)


def _group_bytes(block: Block, rates: Rates, *, looks: bool) -> float:
    """Bytes of matrices that read one input while they are stored together, and of their Hessian and what takes part in making its
    inverse's factor, where that is most. `looks`: whether there are Hessians.
    """
    weights: dict[tuple[str, int], int] = {}
    for lin in block.linears:
        if lin.quantizable:
            group = (lin.reads or lin.name, lin.in_features)
            weights[group] = weights.get(group, 0) + lin.out_features * lin.in_features
    each, number = rates.memory["group_weight"], rates.memory["hessian_number"] * looks
    return max((each * count + number * width**2 for (_, width), count in weights.items()), default=0.0)


def _live(ir: ModelIR, block: Block, batch_tokens: int, device: Gpu) -> int:
    """Batches that wait in memory, as `passes.walk.walk` has it."""
    room = waiting_room(int(device.memory_bytes.value), card=not device.is_cpu)
    return live_batches(block, ir.hidden_size, batch_tokens, _item_bytes(ir, device), room)


def _states(ir: ModelIR, walk: WalkSize, device: Gpu) -> float:
    """Bytes of the hidden states in front of a block and behind it."""
    return 2.0 * walk.tokens * ir.hidden_size * _item_bytes(ir, device)


def _stays(ir: ModelIR, walk: WalkSize, device: Gpu) -> bool:
    """Whether the hidden states stay on a card between the blocks (`passes.blocks.hidden_states.place_of`), if it is all free."""
    return not device.is_cpu and _states(ir, walk, device) <= device.memory_bytes.value / CARD_SHARE


def _item_bytes(ir: ModelIR, device: Gpu) -> int:
    """Bytes of a number that is computed with, as `passes.blocks.devices.compute_dtype` chooses, which needs torch to look."""
    half = not device.is_cpu or (ir.dtype == "BF16" and not device.instructions.isdisjoint({"avx512_bf16", "amx_bf16"}))
    return 2 if half and ir.dtype in ("BF16", "F16") else 4


def _forwards(tokens: int, live_tokens: int) -> float:
    """Forwards that the walk takes a token: one, and more for what does not wait in memory."""
    live = min(1.0, live_tokens / tokens) if tokens else 1.0
    return live + (1 - live) * _AGAIN


def _source(choice: TextChoice) -> TextSource:
    return TextSource(choice.dataset, choice.samples, choice.length, choice.seed)
