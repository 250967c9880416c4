"""What distillation takes of a machine, before it starts: bytes of the teacher's cache, of training, positions at once. No torch."""

from __future__ import annotations

from passes.blocks.memory import LOGIT_BYTES
from passes.errors import DoesNotFitError
from passes.ir.model import ModelIR

#: Bytes of a kept entry of the teacher's distribution: its token as int32, its log-probability as fp16. Of a hidden number: bf16.
_ENTRY_BYTES, _HIDDEN_BYTES = 6, 2
#: Bytes that a weight takes: fp32 itself; besides, while it is trained: its gradient, AdamW's two moments.
_WEIGHT_BYTES, _TRAINED_BYTES = 4, 12
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


def training_bytes(ir: ModelIR, tokens: int, lora_rank: int = 0) -> int:
    """Return the bytes that training takes beside the process, `tokens` of them going through the model together.

    `lora_rank`: of the adapters that are trained in place of the weights; 0 where the weights are.
    """
    read_written = [
        (count, lin.in_features + lin.out_features, lin.copies, lin.active)
        for block, count in ir.decoder.counts
        for lin in block.linears
    ]
    kept = sum(count * sizes * min(active, copies) for count, sizes, copies, active in read_written)
    adapters = lora_rank * sum(count * sizes for count, sizes, copies, _ in read_written if copies == 1)
    weights = ir.weights * _WEIGHT_BYTES + (
        adapters * (_WEIGHT_BYTES + _TRAINED_BYTES) if lora_rank else ir.weights * _TRAINED_BYTES
    )
    return weights + int(tokens * (kept * _KEPT * 4 + ir.vocab_size * LOGIT_BYTES / 2))


def require_room(needed: int, there: int, where: str) -> None:
    """Raise DoesNotFitError where training takes more bytes than are there."""
    if needed > there:
        raise DoesNotFitError(
            f"distillation takes {needed / 2**30:.1f} GiB of memory, {where} has {there / 2**30:.1f} GiB free",
            remedy="`distill: lora_rank: 16`, shorter sequences (`length:`), or `method: blockwise`, which holds one block at a time",
        )
