"""What `apply` will take on this machine: seconds of each step, memory and disk, so that nobody finds out after 40 minutes.

Arithmetic of the steps (`passes.execute`): forwards of the calibration text, one Hessian for each distinct input, the columns'
compensation, what is measured before (which blocks to drop, every option of EXL2, what formats cost, which allocation wins), two
forwards of the held-out text. The rate is this machine's matrix rate; each kind of step reaches a share of it that was measured once, on 2
quiet cores: `optimize apply examples/smollm2-exl2.yaml`, and GPTQ W4 g64 of the same model (`benchmarks/quantize.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from passes.base import Pass
from passes.ir.model import Block, ModelIR, block_bytes
from passes.prune.depth import DepthPrune
from passes.quantize.exl2_pass import QuantizeExl2
from passes.quantize.mixed import QuantizeMixed
from planner.spec import Spec
from targets.gpu import this_cpu
from targets.probe import installed_gpus
from targets.quantity import Basis, Quantity

#: Share of the matrix rate that forwards and compensation reach, and text that the model writes itself, a token at a time.
_RATE_SHARE, _WRITING_SHARE = 0.5, 0.22
#: Operations a weight (at `_RATE_SHARE`): all options of EXL2 tried on it; the chosen one's scales searched and rounded.
_OPTIONS_FLOPS, _SEARCH_FLOPS = 150e3, 20e3
#: Tokens on which two sets of blocks are compared (`passes.prune.influence`), sequences that sensitivities and allocations are tried on
#: (`passes.resolve`, `passes.contest`), and how many allocations are.
_COMPARED_TOKENS, _TRIED_SEQUENCES, _JUDGING_SHARE = 4096, 16, 8
_ALLOCATIONS = {QuantizeExl2: 3, QuantizeMixed: 2}
#: What torch, transformers and the tokenizer take before any weight: seconds, bytes.
_START_SECONDS, _PROCESS_BYTES = 10.0, 700 << 20
#: Tokens whose logits evaluation holds at once (`passes.evaluate`).
_LOGIT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Effort:
    """Seconds of work, peak resident memory and disk in bytes; `steps`: expected seconds of each."""

    seconds: Quantity
    memory_bytes: Quantity
    disk_bytes: int
    steps: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """The estimate as it stands in a plan."""
        return {
            "seconds": self.seconds.as_json(),
            "memory_bytes": self.memory_bytes.as_json(),
            "disk_bytes": self.disk_bytes,
            "steps": {name: round(seconds, 1) for name, seconds in self.steps.items()},
        }


def effort(spec: Spec, source: ModelIR, target: ModelIR, passes: Sequence[Pass]) -> Effort:
    """What running a chain takes on this machine."""
    steps = step_seconds(spec, source, target, passes)
    seconds = _START_SECONDS + sum(steps.values())
    tokens, held_out = _tokens(spec, target, passes), spec.evaluation.samples * spec.evaluation.length
    largest = max(block_bytes(block) for block, _ in source.decoder.counts)
    widest = max((lin.in_features for block, _ in source.decoder.counts for lin in block.linears), default=0)
    hidden = 2 * max(tokens, held_out) * source.hidden_size * 4
    walking = 3 * largest + 3 * 4 * widest**2 + hidden
    judging = min(held_out, _LOGIT_TOKENS) * source.vocab_size * 4 + 2 * source.vocab_size * source.hidden_size * 2
    memory = _PROCESS_BYTES + max(walking, judging)
    disk = (
        target.tensor_bytes + hidden + (source.tensor_bytes if spec.model.endswith(".gguf") or "/" in spec.model else 0)
    )
    return Effort(
        Quantity(seconds, seconds / 2, seconds * 2.5, Basis.ASSUMED),
        Quantity(memory, memory / 1.5, memory * 1.5, Basis.ASSUMED),
        disk,
        steps,
    )


def step_seconds(spec: Spec, source: ModelIR, target: ModelIR, passes: Sequence[Pass]) -> dict[str, float]:
    """Expected seconds of each step, by the names that the certificate gives them. Outside tools' walks count as our own."""
    text, tokens = spec.calibration, _tokens(spec, target, passes)
    forward, head = _forward(source), 2 * source.vocab_size * source.hidden_size
    flops: dict[str, float] = {}
    if tokens and text.dataset == "self":
        flops["calibration text"] = tokens * (forward + head) * _RATE_SHARE / _WRITING_SHARE
    if any(isinstance(one, DepthPrune) and not one.resolved for one in passes):
        flops["measure depth"] = tokens * forward + 4 * min(tokens, _COMPARED_TOKENS) * (forward + head)
    walk = tokens * (forward + _hessians(source)) + (_compensation(source) if tokens else 0)
    tried = min(text.samples, _TRIED_SEQUENCES) * text.length
    waiting = [one for one in passes if not one.resolved and one.backend == "native" and type(one) in _ALLOCATIONS]
    if any(isinstance(one, QuantizeExl2) for one in passes):
        walk += _SEARCH_FLOPS * _weights(source)
    for one in waiting:
        if isinstance(one, QuantizeExl2):
            flops["measure EXL2"] = tokens * (forward + _hessians(source)) + _OPTIONS_FLOPS * _weights(source)
        flops["measure formats"] = 3 * tried * (forward + head) + _compensation(source)
        fitted = walk - (tokens - tried) * (forward + _hessians(source))
        judged = 2 * max(1, text.samples // _JUDGING_SHARE) * text.length * (forward + head)
        flops["compare allocations"] = _ALLOCATIONS[type(one)] * (fitted + judged)
    flops["walk"] = walk
    flops["evaluate"] = 2 * spec.evaluation.samples * spec.evaluation.length * (forward + head)
    rate = (this_cpu().bf16_flops or 1e11) * (1 if not installed_gpus() else 100) * _RATE_SHARE
    return {name: count / rate for name, count in flops.items()}


def _tokens(spec: Spec, target: ModelIR, passes: Sequence[Pass]) -> int:
    """Calibration tokens; none where nothing looks at them."""
    calibrated = (
        any(str(getattr(one, "method", "")) not in ("", "rtn") or one.backend != "native" for one in passes)
        or any(not one.resolved for one in passes)
        or target.calibrated_scales
    )
    return spec.calibration.samples * spec.calibration.length if calibrated else 0


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


def _compensated(block: Block) -> float:
    return sum(
        lin.copies * (lin.out_features * lin.in_features**2 + lin.in_features**3)
        for lin in block.linears
        if lin.quantizable
    )
