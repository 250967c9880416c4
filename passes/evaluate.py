"""How far a result is from its source: KL divergence and perplexity on held-out text, both models streamed block by block.

KL is KL(source ‖ result) of the next-token distributions, averaged over all tokens but each sequence's last, in nats.
Perplexity is exp of the mean negative log-likelihood of the actual next token. Neither model is ever in memory whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.adapters import Decoder
from passes.checkpoint import Weights
from passes.ir.model import ModelIR
from passes.members import dense_block
from passes.reason import TightfitError

if TYPE_CHECKING:
    import torch

#: Tokens whose logits are held at once: 2 models x 1024 tokens x 128k vocabulary x 4 bytes is 1 GiB.
_LOGIT_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured over `tokens` predicted tokens. Standard errors are over sequences."""

    kl: float
    kl_stderr: float
    perplexity: float
    source_perplexity: float
    log_ppl_increase: float
    log_ppl_stderr: float
    tokens: int


@dataclass(frozen=True)
class Side:
    """One of the two models: its description as a dense model, and where its weights come from."""

    ir: ModelIR
    weights: Weights


def evaluate(
    source: Side,
    result: Side,
    tokens: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device,
    batch_tokens: int = 4096,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Compare `result` with `source` on `tokens` `[S, T]`. `progress(done, total)` counts blocks of both models."""
    import torch

    batches = list(torch.split(tokens, max(1, batch_tokens // tokens.shape[1])))
    total = len(source.ir.decoder.layers) + len(result.ir.decoder.layers)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    first, first_hidden = _through(source, batches, dtype, device, step)
    second, second_hidden = _through(result, batches, dtype, device, step)
    rows: list[torch.Tensor] = []
    with ExitStack() as held:
        held.enter_context(first.head())
        held.enter_context(second.head())
        for ids, one, two in zip(batches, first_hidden, second_hidden, strict=True):
            size = max(1, _LOGIT_TOKENS // ids.shape[1])
            for part, a, b in zip(torch.split(ids, size), torch.split(one, size), torch.split(two, size), strict=True):
                rows.append(_compare(first.logits(a), second.logits(b), part.to(device)))
    return _summary(torch.cat(rows), tokens.shape[1] - 1)


def _through(
    side: Side, batches: list[torch.Tensor], dtype: torch.dtype, device: torch.device, step: Callable[[], None]
) -> tuple[Decoder, list[torch.Tensor]]:
    """Hidden states after the last block."""
    decoder = Decoder(side.ir, side.weights, dtype, device)
    hidden = decoder.embed(batches)
    for index in range(len(decoder)):
        with decoder.block(index, dense_block(side.ir, index, side.weights)) as layer:
            for number, each in enumerate(hidden):
                hidden[number] = decoder.run(layer, index, each)
        step()
    return decoder, hidden


def _compare(source: torch.Tensor, result: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Per sequence `[B, 3]`: mean KL, mean NLL of the source, mean NLL of the result."""
    import torch

    p = torch.log_softmax(source[:, :-1].float(), dim=-1)
    q = torch.log_softmax(result[:, :-1].float(), dim=-1)
    following = ids[:, 1:, None]
    nll = [-log.gather(-1, following).squeeze(-1).mean(1) for log in (p, q)]
    q.sub_(p)
    kl = -(p.exp_().mul_(q)).sum(-1).mean(1)
    return torch.stack([kl, *nll], dim=1).double().cpu()


def _summary(rows: torch.Tensor, tokens_each: int) -> Measured:
    if not bool(rows.isfinite().all()):
        raise TightfitError("the logits hold NaN or infinity", remedy="check the source model's weights")
    kl, source, result = (rows[:, column] for column in range(3))
    count = len(rows)
    spread = math.sqrt(count) if count > 1 else math.inf
    rise = result - source
    return Measured(
        kl=float(kl.mean()),
        kl_stderr=float(kl.std()) / spread if count > 1 else 0.0,
        perplexity=math.exp(float(result.mean())),
        source_perplexity=math.exp(float(source.mean())),
        log_ppl_increase=float(rise.mean()),
        log_ppl_stderr=float(rise.std()) / spread if count > 1 else 0.0,
        tokens=count * tokens_each,
    )
