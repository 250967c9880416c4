"""The encoder example: both students come nearer with their teacher than alone."""

from __future__ import annotations

import pytest

from benchmarks import real_models
from examples.encoder_distillation import LABELLED, run, sentences
from tests.conftest import fetched

pytestmark = pytest.mark.slow


def test_sentences_that_judge_have_nouns_of_their_own() -> None:
    train, judge = ({word for text, _ in sentences(60, half, 0) for word in text.split()} for half in (0, 1))
    assert "bread" in train - judge and len(sentences(LABELLED, 0, 0)) == LABELLED


def test_a_student_learns_more_with_its_teacher_than_alone() -> None:
    result = run(fetched(real_models.minilm))
    assert result.embeddings > result.embeddings_alone + 0.05
    assert result.labels > result.labels_alone
