"""Divergences against their closed forms; what is left out of a distribution adds nothing."""

from __future__ import annotations

import pytest
import torch

from passes.distill.objective import OBJECTIVES, divergence, hidden_loss, largest, next_token_loss


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(5, 40, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def closed_form(objective: str, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    mean = (p + q) / 2
    if objective == "forward_kl":
        return (p * (p / q).log()).sum(-1)
    if objective == "reverse_kl":
        return (q * (q / p).log()).sum(-1)
    return ((p * (p / mean).log()).sum(-1) + (q * (q / mean).log()).sum(-1)) / 2


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_the_whole_vocabulary_it_is_the_closed_form(objective: str, temperature: float) -> None:
    teacher, student = logits(1), logits(2)
    log_probs, tokens = largest(teacher, 40, temperature)
    found = divergence(student, tokens, log_probs, objective, temperature)
    expected = temperature**2 * closed_form(objective, teacher / temperature, student / temperature)
    assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_fewer_entries_never_say_more_and_nothing_of_what_is_equal(objective: str) -> None:
    teacher, student = logits(1), logits(2)
    whole = divergence(student, *reversed(largest(teacher, 40)), objective)
    few = divergence(student, *reversed(largest(teacher, 6)), objective)
    assert bool((few <= whole + 1e-5).all()) and bool((few > 0).all())
    same = divergence(teacher, *reversed(largest(teacher, 6)), objective)
    assert torch.allclose(same, torch.zeros(5), atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_lead_to_the_teacher(objective: str) -> None:
    teacher, student = logits(1), logits(2).requires_grad_()
    said = tuple(reversed(largest(teacher, 8)))
    optimizer = torch.optim.Adam([student], lr=0.1)
    before = float(divergence(student.detach(), *said, objective).mean())
    for _ in range(300):
        optimizer.zero_grad()
        divergence(student, *said, objective).mean().backward()
        optimizer.step()
    assert float(divergence(student.detach(), *said, objective).mean()) < before / 100


def test_tokens_that_follow_and_hidden_states() -> None:
    ids = torch.tensor([[3, 1, 2]])
    scores = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    log = scores.log_softmax(-1)
    assert float(next_token_loss(scores, ids)) == pytest.approx(float(-(log[0, 0, 1] + log[0, 1, 2]) / 2))
    states = torch.randn(2, 3, 4)
    assert float(hidden_loss(states, states)) == 0
    assert float(hidden_loss(torch.zeros_like(states), states)) == pytest.approx(1.0)
