"""Known bodies with another head than the one that makes tokens: classifiers, rerankers, reward models, embedding models.

Classes of transformers (`GenericForSequenceClassification`, `GenericForTokenClassification` in `modeling_layers.py`) and of vLLM
(`model_executor/models/qwen2_rm.py`); vLLM serves them with its pooling runner (`model_executor/models/adapters.py`).
"""

from __future__ import annotations

from collections.abc import Collection

from passes.record import dataclass

_LANGUAGE_MODEL = "ForCausalLM"


@dataclass(frozen=True, slots=True)
class Head:
    """What a class's name ends with, and the matrices in place of the head: (name, whether it has a bias); the last one makes the labels.

    `labels`: outputs where the class sets them itself, None where the config does.
    """

    ending: str
    what: str
    matrices: tuple[tuple[str, bool], ...] = ()
    labels: int | None = None


_TWO_LAYERS = (("score.0", True), ("score.2", True))
_HEADS = (
    Head("ForSequenceClassification", "classifier", (("score", False),)),
    Head("ForTokenClassification", "classifier of tokens", (("score", True),)),
    Head("ForProcessRewardModel", "reward model", _TWO_LAYERS, labels=2),
    Head("ForRewardModel", "reward model", _TWO_LAYERS, labels=1),
    Head("TextModel", "embedding model"),
    Head("Model", "embedding model"),
)


def headed(architecture: str, known: Collection[str]) -> tuple[str, Head] | None:
    """Return the language model that a class shares its body with, and the head it has instead; None where no known one is."""
    for head in _HEADS:
        body = architecture.removesuffix(head.ending) + _LANGUAGE_MODEL
        if architecture.endswith(head.ending) and body in known:
            return body, head
    return None
