"""What a model answers with: text, the vector of a text, or the score of one (embedding models; rerankers, classifiers, reward models)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from passes.ir.architectures import other_head
from passes.ir.model import ModelIR, remembered
from passes.ir.names import scores, writes_nothing
from passes.ir.readers.paths import path_named


class Purpose(StrEnum):
    """What a request ends with."""

    TEXT = "text"
    VECTOR = "vector"
    SCORE = "score"

    @property
    def writes(self) -> bool:
        """Whether an answer is text, so that tokens are decoded."""
        return self is Purpose.TEXT


#: Bodies that read a text whole (`architectures/families/encoders.py`) begin so, and score it where they end so.
_ENCODERS = ("Bert", "Roberta", "XLMRoberta", "ModernBert")
_SCORES = ("ForSequenceClassification", "ForTokenClassification")


@remembered
def purpose(ir: ModelIR) -> Purpose:
    """Return what a model is for: by its class, and where that is a language model's (Qwen3-Embedding's is) by its name."""
    return _purpose(ir.config, ir.architecture, ir.name)


def purpose_told(model: str) -> Purpose:
    """Return the same of a model as a spec names it, before it is opened: of a folder by its config, else by the name."""
    file = path_named(model) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return _purpose(config, str(next(iter(config.get("architectures") or ()), "")), model)
    except (OSError, ValueError, AttributeError, TypeError):
        return purpose_named(model)  # a config that is none is refused where the model is opened


def _purpose(config: Mapping[str, Any], architecture: str, name: str) -> Purpose:
    head = other_head(config, name)
    if head is not None:
        return Purpose.VECTOR if head == "embedding model" else Purpose.SCORE
    if architecture.startswith(_ENCODERS):
        return Purpose.SCORE if architecture.endswith(_SCORES) else Purpose.VECTOR
    return purpose_named(name)


def purpose_named(name: str) -> Purpose:
    """Return what a model is for by its name alone."""
    if scores(name):
        return Purpose.SCORE
    return Purpose.VECTOR if writes_nothing(name) else Purpose.TEXT
