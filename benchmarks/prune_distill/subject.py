"""Which models are pruned and distilled, by how much, and on how much text.

Sizes of the first are those that two cores get through in forty minutes. Of the second, whose vocabulary is five times as large (two
thirds of its products are logits), there is less of everything, some ten minutes of one core for a stage; what goes is chosen without
gradients, and it is trained by adapters: it is there to show that nothing hangs on the first one's head size, norms, windows and first token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import real_models
from passes.algorithms.learned.rounding import Tuning
from passes.distill.distill import Distill
from passes.prune.width import IMPORTANCES


@dataclass(frozen=True)
class Subject:
    """A model and what is done with it.

    `channels`: what stays of each MLP, a fifth less than there are, a multiple of the group of 64 that 4 bits are stored in. `chosen`: of
    `importances`, the one that is compensated: of the first model what lost least in trials (docs/quantization.md). `rounds`: of
    sequences of each kind of text that compensation is fitted to; `chosen_on`: sequences that say what goes; `judged`: of each judging text;
    `fitted_to`: sequences that 3 bits are fitted to, whose blocks are tuned as `tuning` says. `recovery`, `narrowed`: the budgets of
    distillation of the model with fewer blocks and of the narrower one, each token seen once; `forecast`: that of each run whose end is
    forecast after a fifth. `minutes`: of the clock that a run of all stages from nothing may take on two cores; None for no goal.
    """

    name: str
    title: str
    file: Callable[[], Path]
    channels: int
    importances: tuple[str, ...]
    chosen: str
    rounds: int
    chosen_on: int
    judged: int
    recovery: Distill
    narrowed: Distill
    forecast: Distill
    fitted_to: int
    tuning: Tuning
    minutes: float | None = None


SMOLLM2 = Subject(
    "smollm2", "SmolLM2", real_models.smollm2, 1216, IMPORTANCES, "fisher", rounds=32, chosen_on=48, judged=16,
    recovery=Distill(tokens=24_576, length=128, learning_rate=5e-4), narrowed=Distill(tokens=8_192, length=128, learning_rate=5e-4),
    forecast=Distill(tokens=6_144, length=128, epochs=2, learning_rate=3e-4), fitted_to=72, tuning=Tuning(49_152), minutes=40.0,
)  # fmt: skip
GEMMA3 = Subject(
    "gemma3", "Gemma 3 270M", real_models.gemma3, 1600, ("activation", "magnitude", "random"), "activation", rounds=4, chosen_on=16,
    judged=8,
    recovery=Distill(tokens=6_144, length=128, learning_rate=1e-3, lora_rank=16),
    narrowed=Distill(tokens=6_144, length=128, learning_rate=1e-3, lora_rank=16),
    forecast=Distill(tokens=4_096, length=128, epochs=2, learning_rate=1e-3, lora_rank=16), fitted_to=16,
    tuning=Tuning(16_384, batch_tokens=256),
)  # fmt: skip
SUBJECTS = {subject.name: subject for subject in (SMOLLM2, GEMMA3)}
