"""How far a result is from its source: KL divergence and perplexity on held-out text, both models streamed block by block.

KL is KL(source ‖ result) of the next-token distributions, averaged over all tokens but each sequence's last, in nats.
Perplexity is exp of the mean negative log-likelihood of the actual next token. Neither model is ever in memory whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from passes.blocks.decoder import Decoder
from passes.blocks.hidden_states import Hidden
from passes.blocks.matrices import dense_block
from passes.blocks.memory import BATCH_TOKENS, LOGIT_TOKENS
from passes.errors import TightfitError
from passes.files.checkpoint import Weights
from passes.ir.model import ModelIR

if TYPE_CHECKING:
    import torch


#: Student's t at 95 % for 1, 2, … degrees of freedom; the last stands for all that are more.
_STUDENT = (
    6.314,
    2.920,
    2.353,
    2.132,
    2.015,
    1.943,
    1.895,
    1.860,
    1.833,
    1.812,
    1.796,
    1.782,
    1.771,
    1.761,
    1.753,
    1.746,
    1.740,
    1.734,
)


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
    sequences: int

    def half_width(self, stderr: float) -> float:
        """Half of the 90 % interval around a figure with a standard error over so few sequences (Student's t)."""
        freedom = min(self.sequences - 1, len(_STUDENT))
        return stderr * _STUDENT[freedom - 1] if freedom > 0 else math.inf


@dataclass(frozen=True)
class Side:
    """One of the two models: its description as a dense model, and where its weights come from."""

    ir: ModelIR
    weights: Weights


def evaluate(
    source: Side,
    result: Side,
    tokens: torch.Tensor,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Compare `result` with `source` on `tokens` `[S, T]`. `progress(done, total)` counts blocks of both models.

    `folder` keeps the hidden states: a run that was killed goes on there. Who has kept the result removes it.
    """
    import torch

    batches = list(torch.split(tokens, max(1, batch_tokens // tokens.shape[1])))
    total = len(source.ir.decoder.layers) + len(result.ir.decoder.layers)
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    first, first_hidden = _through(source, batches, folder / "source", dtype, device, step)
    second, second_hidden = _through(result, batches, folder / "result", dtype, device, step)
    rows: list[torch.Tensor] = []
    with ExitStack() as held:
        held.enter_context(first.head())
        held.enter_context(second.head())
        for number, ids in enumerate(batches):
            pairs = [
                _compare(first.logits(one[None]), second.logits(two[None]), following)
                for one, two, following in zip(
                    _predicting(first_hidden.read(len(first), number), device),
                    _predicting(second_hidden.read(len(second), number), device),
                    torch.split(ids[:, 1:].flatten().to(device), LOGIT_TOKENS),
                    strict=True,
                )
            ]
            rows.append(torch.cat(pairs).view(len(ids), -1, 3).mean(1))
    return _summary(torch.cat(rows), tokens.shape[1] - 1)


def _predicting(hidden: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
    """What predicts a next token of `hidden` `[B, T, D]`: all but each sequence's last, `LOGIT_TOKENS` at a time."""
    import torch

    return torch.split(hidden[:, :-1].flatten(0, 1).to(device), LOGIT_TOKENS)


def _through(
    side: Side,
    batches: list[torch.Tensor],
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    step: Callable[[int], None],
) -> tuple[Decoder, Hidden]:
    """What leaves the last block."""
    decoder = Decoder(side.ir, side.weights, dtype, device)
    hidden = Hidden(folder, len(batches))
    start = hidden.last(len(decoder))
    hidden.embed([decoder], batches, start)
    step(start)
    for index in range(start, len(decoder)):
        with decoder.block(index, dense_block(side.ir, index, side.weights)) as layer:
            hidden.run(decoder, layer, index)
        hidden.drop(index)
        step(1)
    return decoder, hidden


def _compare(source: torch.Tensor, result: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Per token `[N, 3]`: KL, NLL of the source, NLL of the result, for logits `[1, N, vocabulary]` and the tokens that follow `[N]`."""
    import torch

    p = torch.log_softmax(source[0].float(), dim=-1)
    q = torch.log_softmax(result[0].float(), dim=-1)
    nll = [-log.gather(-1, following[:, None]).squeeze(-1) for log in (p, q)]
    q.sub_(p)
    kl = -(p.exp_().mul_(q)).sum(-1)
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
        sequences=count,
    )
