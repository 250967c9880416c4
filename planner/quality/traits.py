"""Which family a model is of, how large it is and on how many tokens it was trained: what its sensitivity is read from."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.ir.model import ModelIR
from passes.ir.names import fold
from planner.quality.features import Traits

#: Sizes this close count as the same model: makers round, and counts with and without embeddings differ.
_SAME_SIZE = 0.15
#: What names of instruct and chat models have in common; of Qwen3, those that do not say that they are base models.
_TUNED = r"instruct|chat|it$|vicuna|distill|qwq|^qwen3(?!.*base)"


@lru_cache(maxsize=1)
def families() -> dict[str, Any]:
    """Return the table of families (`quality_families.json`)."""
    table: dict[str, Any] = json.loads(Path(__file__).with_name("quality_families.json").read_text())
    return table


def named_traits(name: str, size_b: float, model_type: str = "") -> Traits:
    """Find the traits of a model by its name, by its type where the name says nothing; an unknown family has the name `unknown`."""
    folded = fold(name.rstrip("/").rsplit("/", 1)[-1])
    tuned = re.search(_TUNED, folded) is not None
    for entry in families()["families"]:
        if any(re.search(pattern, folded) for pattern in entry["match"]):
            return Traits(entry["family"], size_b, entry["tokens_t"], tuned)
    family = families()["model_types"].get(model_type, "unknown")
    tokens = next((entry["tokens_t"] for entry in families()["families"] if entry["family"] == family), None)
    return Traits(family, size_b, tokens or families()["unknown_tokens_t"], tuned)


def nominal(traits: Traits, known_sizes: tuple[float, ...]) -> Traits:
    """Return the traits with the size of the known model of the family that it is, where it is one."""
    near = [size for size in known_sizes if abs(size / traits.size_b - 1) < _SAME_SIZE]
    if not near:
        return traits
    return replace(traits, size_b=min(near, key=lambda size: abs(size / traits.size_b - 1)))


_seen: dict[tuple[str, str, int, int, int, float], Traits] = {}


def traits_of(ir: ModelIR) -> Traits:
    """Find the traits of a description. Memoised by what identifies the source, because the planner asks for every candidate."""
    key = (ir.name, ir.model_type, ir.hidden_size, ir.vocab_size, len(ir.decoder.layers), ir.rounded_bits)
    if key not in _seen:
        named = named_traits(ir.name, max(ir.weights / 1e9, 1e-3), ir.model_type)
        _seen[key] = replace(named, rounded_bits=ir.rounded_bits)
    return _seen[key]
