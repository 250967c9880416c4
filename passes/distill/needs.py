"""What distillation takes of a machine, before it starts: bytes of the teacher's cache, of training, positions at once. No torch."""

from __future__ import annotations

from passes.blocks.memory import LOGIT_BYTES
from passes.errors import DoesNotFitError
from passes.ir.model import ModelIR

#: Bytes of a kept entry of the teacher's distribution: its token as int32, its log-probability as fp16. Of a hidden number: bf16.
_ENTRY_BYTES, _HIDDEN_BYTES = 6, 2
#: Bytes that a weight takes: fp32 itself; besides, while it is trained: its gradient, AdamW's two moments.
_WEIGHT_BYTES, _TRAINED_BYTES = 4, 12
#: Of these, what a checkpoint keeps of a weight.
_MOMENTS_BYTES = 8
#: fp32 numbers that a block keeps of a token for the way back, for each that its matrices read or write: norms and activations.
_KEPT = 1.5
#: Logits of one forward may take so many bytes: more positions wait for their turn (gradients are summed up).
_LOGITS_ROOM = 1 << 30


def cache_bytes(ir: ModelIR, tokens: int, top_k: int, *, hidden: bool) -> int:
    """Return the bytes of the teacher's `top_k` log-probabilities for so many tokens; `hidden`: with its last hidden states. Exact."""
    each = min(top_k, ir.vocab_size) * _ENTRY_BYTES + (ir.hidden_size * _HIDDEN_BYTES if hidden else 0)
    return tokens * each


def rows_at_once(ir: ModelIR, length: int, rows: int) -> int:
    """Return how many of `rows` sequences go through a model together: a divisor of `rows` whose logits have room."""
    fitting = max(1, _LOGITS_ROOM // (length * ir.vocab_size * LOGIT_BYTES // 2))
    return max(part for part in range(1, rows + 1) if rows % part == 0 and (part <= fitting or part == 1))


def trained_weights(ir: ModelIR, lora_rank: int = 0) -> int:
    """Return the weights that are trained: all of them, or those of adapters of that rank at each matrix that is no expert."""
    sizes = (
        count * (lin.in_features + lin.out_features)
        for block, count in ir.decoder.counts
        for lin in block.linears
        if lin.copies == 1
    )
    return lora_rank * sum(sizes) if lora_rank else ir.weights


def training_bytes(ir: ModelIR, tokens: int, lora_rank: int = 0) -> int:
    """Return the bytes that training takes beside the process, `tokens` of them going through the model together.

    `lora_rank`: of the adapters that are trained in place of the weights; 0 where the weights are.
    """
    kept = sum(
        count * sum((lin.in_features + lin.out_features) * min(lin.active, lin.copies) for lin in block.linears)
        for block, count in ir.decoder.counts
    )
    trained = trained_weights(ir, lora_rank)
    weights = (ir.weights + (trained if lora_rank else 0)) * _WEIGHT_BYTES + trained * _TRAINED_BYTES
    return weights + int(tokens * (kept * _KEPT * 4 + ir.vocab_size * LOGIT_BYTES / 2))


def training_disk_bytes(ir: ModelIR, lora_rank: int = 0) -> int:
    """Return the bytes that training keeps on disk: the student at its end, twice in fp32, and two checkpoints with AdamW's moments."""
    return 2 * ir.weights * _WEIGHT_BYTES + 2 * trained_weights(ir, lora_rank) * (_WEIGHT_BYTES + _MOMENTS_BYTES)


def require_room(needed: int, there: int, where: str) -> None:
    """Raise DoesNotFitError where training takes more bytes than are there."""
    if needed > there:
        raise DoesNotFitError(
            f"distillation takes {needed / 2**30:.1f} GiB of memory, {where} has {there / 2**30:.1f} GiB free",
            remedy="`distill: lora_rank: 16`, shorter sequences (`length:`), or `method: blockwise`, which holds one block at a time",
        )
