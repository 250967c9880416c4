"""What a student is trained by: divergences from a teacher's next-token distribution, of which its largest entries are kept.

A teacher's distribution is kept as its `k` largest log-probabilities and their tokens; everything else is one class more, on both sides.
By the log-sum inequality no divergence grows by that, and with `k` the whole vocabulary nothing is left out. Temperature divides the logits
of both; gradients are brought back to the size that they have without it by its square (Hinton et al. 2015).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: `forward_kl`: KL(teacher ‖ student), covers what the teacher may say; `reverse_kl`: KL(student ‖ teacher), keeps to
#: it; `jsd`: between them.
OBJECTIVES = ("forward_kl", "reverse_kl", "jsd")
#: The least that all other tokens together are taken to have: what fp32 can tell from 1.
_LEAST = 1e-6


def divergence(
    logits: torch.Tensor, tokens: torch.Tensor, log_probs: torch.Tensor, objective: str, temperature: float = 1.0
) -> torch.Tensor:
    """Return the divergence of each position `[N]`, in nats.

    `logits`: the student's `[N, V]`; `tokens`, `log_probs`: the teacher's `[N, k]`, at the same temperature.
    """
    import torch

    student = torch.log_softmax(logits.float() / temperature, dim=-1).gather(-1, tokens.long())
    teacher = log_probs.float()
    if tokens.shape[-1] < logits.shape[-1]:
        student, teacher = _with_rest(student), _with_rest(teacher)
    if objective == "forward_kl":
        nats = _kl(teacher, student)
    elif objective == "reverse_kl":
        nats = _kl(student, teacher)
    else:
        mean = torch.logaddexp(teacher, student) - torch.log(torch.tensor(2.0))
        nats = (_kl(teacher, mean) + _kl(student, mean)) / 2
    return nats * temperature**2


def largest(logits: torch.Tensor, k: int, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `k` largest log-probabilities of logits `[N, V]`, fp32, and their tokens, int32: each `[N, k]`."""
    import torch

    values, tokens = torch.log_softmax(logits.float() / temperature, dim=-1).topk(min(k, logits.shape[-1]), dim=-1)
    return values, tokens.to(torch.int32)


def next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean negative log-likelihood, in nats a token, of what follows: logits `[B, T, V]`, ids `[B, T]`."""
    import torch

    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def hidden_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of hidden states `[…, D]` as a share of the teacher's own square: 0 where they agree."""
    teacher = teacher.float()
    return (student.float() - teacher).square().mean() / teacher.square().mean()


def _with_rest(log_probs: torch.Tensor) -> torch.Tensor:
    """`[N, k + 1]`: the last class is everything that is not kept."""
    import torch

    rest = (1 - log_probs.exp().sum(-1, keepdim=True)).clamp(min=_LEAST)
    return torch.cat([log_probs, rest.log()], dim=-1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p.exp() * (p - q)).sum(-1)
