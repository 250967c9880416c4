"""Distils all-MiniLM-L6-v2, a BERT of six layers, into three: its embeddings, and a small labelled task by soft labels.

    python -m examples.encoder_distillation

The student begins with every second layer of its teacher (Sanh et al. 2019). Each time it is trained twice from there: with the teacher
and without it. *Embeddings*: to have the teacher's direction (1 − cosine) and values (MSE); alone, to tell a sentence from others when
words are dropped (Gao et al. 2021, with words in place of units). *Labels*: sentences on four subjects, of which 16 bear a label. The
teacher learns a classifier from those and tells its odds for 200 sentences without one: the student learns these soft labels (KL at
temperature 2, `passes.distill.objective`); alone it has the 16. Labelled sentences and those that judge have no noun in common.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from benchmarks.real_models import minilm
from passes.distill.objective import divergence, largest

#: Nouns of each subject: the first half are for training, the second for judging.
SUBJECTS = {
    "cooking": ("bread", "soup", "butter", "garlic", "oven", "recipe", "pastry", "stew", "pepper", "saucepan"),
    "money": ("bank", "loan", "tax", "salary", "invoice", "mortgage", "dividend", "pension", "debt", "currency"),
    "sport": ("goal", "coach", "tennis", "marathon", "referee", "striker", "hockey", "sprinter", "umpire", "league"),
    "weather": ("rain", "storm", "cloud", "frost", "wind", "thunder", "drizzle", "blizzard", "humidity", "hail"),
}
FRAMES = (
    "We talked about the {a} and the {b} all evening.", "Yesterday the {a} surprised everyone, and so did the {b}.",
    "Nobody had expected the {b} after the {a}.", "My neighbour knows a lot about the {a}, less about the {b}.",
    "The {a} was mentioned twice in the paper, the {b} once.", "She wrote a letter on the {a} and the {b}.",
)  # fmt: skip
LABELLED, UNLABELLED, JUDGING = 16, 200, 120
STEPS, ROWS, RATE, TEMPERATURE = 40, 8, 1e-4, 2.0


@dataclass(frozen=True)
class Result:
    """What the students reach: mean cosine of their embeddings to the teacher's; the share of sentences whose subject they name."""

    embeddings_alone: float
    embeddings: float
    labels_alone: float
    labels: float
    teacher_labels: float


def sentences(count: int, half: int, seed: int) -> list[tuple[str, int]]:
    """Return sentences with their subjects, made of one half of the nouns."""
    drawn = random.Random(seed)
    made = []
    for number in range(count):
        subject = number % len(SUBJECTS)
        nouns = list(SUBJECTS.values())[subject]
        a, b = drawn.sample(nouns[:5] if half == 0 else nouns[5:], 2)
        made.append((drawn.choice(FRAMES).format(a=a, b=b), subject))
    return made


class Encoder(torch.nn.Module):
    """A BERT with a classifier on the mean of its states."""

    def __init__(self, body: Any, tokenizer: Any) -> None:
        """Take a body, which the encoder trains."""
        super().__init__()
        self.body, self.tokenizer = body, tokenizer
        self.classifier = torch.nn.Linear(body.config.hidden_size, len(SUBJECTS))

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the mean of each text's states `[N, D]`."""
        batch = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        states = self.body(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        mean: torch.Tensor = (states * mask).sum(1) / mask.sum(1)
        return mean

    def classify(self, texts: Sequence[str]) -> torch.Tensor:
        """Return logits of the subjects `[N, 4]`."""
        logits: torch.Tensor = self.classifier(self.embed(texts))
        return logits


def loaded(folder: Path) -> Encoder:
    """Return the teacher."""
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(0)
    body = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    return Encoder(body, AutoTokenizer.from_pretrained(folder))


def halved(teacher: Encoder) -> Encoder:
    """Return a student of every second layer of its teacher."""
    student = copy.deepcopy(teacher)
    student.body.encoder.layer = student.body.encoder.layer[::2]
    student.body.config.num_hidden_layers = len(student.body.encoder.layer)
    return student


def trained(model: Encoder, count: int, loss: Callable[[list[int]], torch.Tensor], parameters: Any = None) -> Encoder:
    """Train on batches of numbers below `count`; by default all of the model."""
    drawn = random.Random(1)
    optimizer = torch.optim.AdamW(parameters or model.parameters(), lr=RATE if parameters is None else 1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss([drawn.randrange(count) for _ in range(ROWS)]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def embeddings(teacher: Encoder, texts: Sequence[str], *, alone: bool) -> Encoder:
    """Return a student trained for embeddings, by its teacher or alone."""
    student, drawn = halved(teacher), random.Random(2)

    def followed(rows: list[int]) -> torch.Tensor:
        batch = [texts[row] for row in rows]
        with torch.no_grad():
            wanted = teacher.embed(batch)
        given = student.embed(batch)
        return (1 - cosine_similarity(given, wanted)).mean() + (given - wanted).square().mean()

    def told_apart(rows: list[int]) -> torch.Tensor:
        batch = [texts[row] for row in rows]
        dropped = [" ".join(word for word in text.split() if drawn.random() > 0.2) for text in batch]
        alike = cosine_similarity(student.embed(batch)[:, None], student.embed(dropped)[None], dim=-1)
        return cross_entropy(alike / 0.05, torch.arange(len(rows)))

    return trained(student, len(texts), told_apart if alone else followed)


def labels(teacher: Encoder, known: Sequence[tuple[str, int]], texts: Sequence[str], *, alone: bool) -> Encoder:
    """Return a student that names subjects, taught by soft labels of all texts or by the known ones alone."""
    student = halved(teacher)

    def by_labels(rows: list[int]) -> torch.Tensor:
        batch = [known[row] for row in rows]
        return cross_entropy(student.classify([text for text, _ in batch]), torch.tensor([label for _, label in batch]))

    def by_teacher(rows: list[int]) -> torch.Tensor:
        batch = [texts[row] for row in rows]
        with torch.no_grad():
            odds, subjects = largest(teacher.classify(batch), len(SUBJECTS), TEMPERATURE)
        return divergence(student.classify(batch), subjects, odds, "forward_kl", TEMPERATURE).mean()

    return trained(student, len(known), by_labels) if alone else trained(student, len(texts), by_teacher)


def taught(teacher: Encoder, known: Sequence[tuple[str, int]]) -> Encoder:
    """Return the teacher with a classifier learned from the known labels, its body as it is."""

    def loss(rows: list[int]) -> torch.Tensor:
        with torch.no_grad():
            states = teacher.embed([known[row][0] for row in rows])
        return cross_entropy(teacher.classifier(states), torch.tensor([known[row][1] for row in rows]))

    return trained(teacher, len(known), loss, teacher.classifier.parameters())


def accuracy(model: Encoder, judging: Sequence[tuple[str, int]]) -> float:
    """Return the share of sentences whose subject is named."""
    with torch.no_grad():
        named = model.classify([text for text, _ in judging]).argmax(-1)
    return float((named == torch.tensor([label for _, label in judging])).float().mean())


def closeness(model: Encoder, teacher: Encoder, texts: Sequence[str]) -> float:
    """Return the mean cosine between a student's embeddings and its teacher's."""
    with torch.no_grad():
        return float(cosine_similarity(model.embed(texts), teacher.embed(texts)).mean())


def run(folder: Path) -> Result:
    """Train the four students and judge them."""
    known, judging = sentences(LABELLED, 0, seed=0), sentences(JUDGING, 1, seed=1)
    # What nobody has labelled is made of all nouns: the teacher's odds tell of those that no label has seen.
    texts = [text for half in (0, 1) for text, _ in sentences(UNLABELLED // 2, half, seed=2 + half)]
    plain = [text for text, _ in sentences(UNLABELLED, 0, seed=4)]
    teacher = taught(loaded(folder), known)
    told = [text for text, _ in judging]
    return Result(
        closeness(embeddings(teacher, plain, alone=True), teacher, told),
        closeness(embeddings(teacher, plain, alone=False), teacher, told),
        accuracy(labels(teacher, known, texts, alone=True), judging),
        accuracy(labels(teacher, known, texts, alone=False), judging),
        accuracy(teacher, judging),
    )


if __name__ == "__main__":
    result = run(minilm())
    print(
        f"embeddings, mean cosine to the teacher's: alone {result.embeddings_alone:.3f}, distilled {result.embeddings:.3f}"
    )
    print(
        f"subjects named: alone {result.labels_alone:.3f}, distilled {result.labels:.3f}, teacher {result.teacher_labels:.3f}"
    )
