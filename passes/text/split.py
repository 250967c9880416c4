"""Which part of the calibration text is for what. The walk itself sees all of it; choices are fitted to a part, judged on the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: The share of the sequences that judges what was fitted to the others: one in so many.
_JUDGING_SHARE = 8
#: Sequences that allocations are fitted to before they are held against each other, and that formats' costs are estimated on.
FITTED_SEQUENCES = FISHER_SEQUENCES = 16
#: Sequences on which it is felt which units matter.
FELT_SEQUENCES = 48
#: Enough for the KL of two sets of dropped blocks, which lie far apart; a forward costs what it costs.
JUDGED_TOKENS = 4096


def judging(samples: int) -> int:
    """Return how many sequences, the last ones, judge what was fitted to the others."""
    return max(1, samples // _JUDGING_SHARE)


def fitted_part(tokens: torch.Tensor) -> torch.Tensor:
    """Return what choices are fitted to: all of `tokens` `[S, T]` but those that judge. A lone sequence is all there is."""
    return tokens[: max(1, len(tokens) - judging(len(tokens)))]


def judging_part(tokens: torch.Tensor) -> torch.Tensor:
    """Return what choices are judged on."""
    return tokens[-judging(len(tokens)) :]
