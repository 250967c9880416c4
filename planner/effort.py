"""What `apply` will take on this machine: seconds, memory and disk, so that nobody finds out after 40 minutes.

Arithmetic of the walk (`passes.walk`): one forward of the calibration text, one Hessian for each distinct input, the columns'
compensation; then evaluation, two forwards of the held-out text. The rate is this machine's matrix rate times a share that
was measured once: SmolLM2-135M, 64 × 512 tokens, GPTQ W4 g64 took 129 s on 2 quiet cores (benchmarks/quantize.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from passes.base import Pass
from passes.ir.model import Block, ModelIR, block_bytes
from planner.spec import Spec
from targets.gpu import this_cpu
from targets.probe import installed_gpus
from targets.quantity import Basis, Quantity

#: Share of the matrix rate that the walk reaches (see above), and what torch and the tokenizer take before any weight.
_RATE_SHARE = 0.5
_PROCESS_BYTES = 700 << 20
#: Tokens whose logits evaluation holds at once (`passes.evaluate`).
_LOGIT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Effort:
    """Seconds of work, peak resident memory and disk in bytes."""

    seconds: Quantity
    memory_bytes: Quantity
    disk_bytes: int

    def as_json(self) -> dict[str, Any]:
        """The estimate as it stands in a plan."""
        return {
            "seconds": self.seconds.as_json(),
            "memory_bytes": self.memory_bytes.as_json(),
            "disk_bytes": self.disk_bytes,
        }


def effort(spec: Spec, source: ModelIR, target: ModelIR, passes: Sequence[Pass]) -> Effort:
    """What running a chain takes on this machine."""
    calibrated = any(str(getattr(p, "method", "")) not in ("", "rtn") for p in passes) or target.kv_cache.scales
    tokens = spec.calibration.samples * spec.calibration.length if calibrated else 0
    held_out = spec.evaluation.samples * spec.evaluation.length
    blocks = [(block, count) for block, count in source.decoder.counts]
    forward = 2 * sum(count * _active(block) for block, count in blocks)
    hessians = 2 * sum(count * _inputs_squared(block) for block, count in blocks)
    compensation = 2 * sum(count * _compensation(block) for block, count in blocks) if calibrated else 0
    head = 2 * source.vocab_size * source.hidden_size
    flops = tokens * (forward + hessians) + compensation + 2 * held_out * (forward + head)
    if calibrated and spec.calibration.dataset == "self":
        flops += tokens * (forward + head)
    rate = (this_cpu().bf16_flops or 1e11) * (1 if not installed_gpus() else 100) * _RATE_SHARE
    seconds = 20 + flops / rate
    largest = max(block_bytes(block) for block, _ in blocks)
    widest = max((lin.in_features for block, _ in blocks for lin in block.linears), default=0)
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
    )


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


def _compensation(block: Block) -> float:
    return sum(
        lin.copies * (lin.out_features * lin.in_features**2 + lin.in_features**3)
        for lin in block.linears
        if lin.quantizable
    )
