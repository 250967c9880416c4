"""How far a result is from its source: KL divergence and perplexity on held-out text, both models streamed block by block.

KL is KL(source ‖ result) of the next-token distributions, averaged over all tokens but each sequence's last, in nats.
Perplexity is exp of the mean negative log-likelihood of the actual next token. Neither model is ever in memory whole.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import TYPE_CHECKING

from passes.blocks.dense_model import DenseModel
from passes.blocks.hidden_states import HiddenStates
from passes.blocks.memory import BATCH_TOKENS, LOGIT_TOKENS
from passes.blocks.stream import BlockStream, batches_of
from passes.errors import TightfitError
from passes.measure.source_states import bring, keep, keepable
from passes.record import dataclass
from passes.steps.context import RunContext
from passes.steps.key import content_key
from passes.steps.step import part_of
from passes.text.source import tokens_digest

if TYPE_CHECKING:
    import torch


#: A trained model's perplexity is far below this part of the vocabulary, whatever the text.
_BETTER_THAN_GUESSING = 4
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

    def source_guesses(self, vocabulary: int) -> bool:
        """Tell whether the source itself predicts hardly better than by drawing from its `vocabulary`, as random or damaged weights do."""
        return not self.source_perplexity < vocabulary / _BETTER_THAN_GUESSING

    def half_width(self, stderr: float) -> float:
        """Return half of the 90 % interval around a figure with a standard error over so few sequences (Student's t)."""
        freedom = min(self.sequences - 1, len(_STUDENT))
        return stderr * _STUDENT[freedom - 1] if freedom > 0 else math.inf


def evaluate(source: DenseModel, result: DenseModel, run: RunContext, batch_tokens: int = BATCH_TOKENS) -> Measured:
    """Compare `result` with `source` on the run's text. Its report counts blocks of both models, and what their heads are asked after them.

    Its folder keeps the hidden states: a run that was killed goes on there. Who has kept the result removes it. What the source brings
    behind its last block is kept for what else is held against it (`source_states`).
    """
    import torch

    blocks, asked = len(source) + len(result), 0
    total = blocks + sum(-(-ids[:, 1:].numel() // LOGIT_TOKENS) for ids in batches_of(run.text, batch_tokens))
    first = _through_source(source, run.part(run.folder / "source", part_of(run.report, 0, total)), batch_tokens)
    second = through(result, run.part(run.folder / "result", part_of(run.report, len(source), total)), batch_tokens)
    device = run.devices[0]
    rows: list[torch.Tensor] = []
    with ExitStack() as held:
        held.enter_context(first.decoders[0].head())
        held.enter_context(second.decoders[0].head())
        for number, ids in enumerate(first.batches):
            pairs = []
            for before, after, following in zip(
                _predicting(first.hidden.read(len(source), number), device),
                _predicting(second.hidden.read(len(result), number), device),
                torch.split(ids[:, 1:].flatten().to(device), LOGIT_TOKENS),
                strict=True,
            ):
                expected, got = first.decoders[0].logits(before[None]), second.decoders[0].logits(after[None])
                pairs.append(_compare(expected, got, following))
                asked += 1
                run.report(blocks + asked, total)
            rows.append(torch.cat(pairs).view(len(ids), -1, 3).mean(1))
    return _summary(torch.cat(rows), run.text.shape[1] - 1)


def _predicting(hidden: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, ...]:
    """What predicts a next token of `hidden` `[B, T, D]`: all but each sequence's last, `LOGIT_TOKENS` at a time."""
    import torch

    return torch.split(hidden[:, :-1].flatten(0, 1).to(device), LOGIT_TOKENS)


def _through_source(source: DenseModel, run: RunContext, batch_tokens: int) -> BlockStream:
    """Bring the text through the source, or to where another result's evaluation has brought it."""
    states_bytes = run.text.numel() * source.ir.hidden_size * run.dtype.itemsize
    if not source.identity or not keepable(states_bytes):  # without an identity nothing tells it from another model
        return through(source, run, batch_tokens)
    key = content_key(*source.identity, tokens_digest(run.text), batch_tokens)
    last = HiddenStates.on_disk(run.folder, len(source))
    bring(key, last)
    stream = through(source, run, batch_tokens)
    stream.hidden.save(range(len(source), len(source) + 1))
    keep(key, last)
    return stream


def through(dense: DenseModel, run: RunContext, batch_tokens: int) -> BlockStream:
    """Bring the run's text behind the last block, from wherever an earlier run has brought it; return where it is."""
    stream = BlockStream(dense, run, batch_tokens)
    start = stream.reached()
    run.report(start, len(dense))
    for block in stream.blocks(start):
        with block.loaded() as replicas:
            block.run(replicas)
        run.report(block.index + 1, len(dense))
    return stream


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
