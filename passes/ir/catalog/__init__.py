"""Architecture facts of well-known models, so that planning works offline.

One JSON object a line: `id`, `config` (config.json reduced to what fixes shapes, caches and limits), `provenance`, and where
useful `names`, other spellings that mean it. Made by `benchmarks/make_catalog.py`. A lookup reads the file's bytes and parses
one line. `published.json` names quantized checkpoints that others put on the Hub, each with the model it was made of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.record import dataclass

_FILE = Path(__file__).with_name("models.jsonl")
_PUBLISHED = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Entry:
    """A model of the catalog."""

    id: str
    config: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def spread(self) -> float:
        """Relative 90 % half width of the bytes of its weights: 0 for a copy of its file, or where its parameters were counted."""
        return float(self.provenance.get("spread", 0.0))

    @property
    def stored_quantized(self) -> bool:
        """Whether its own config says that some of its weights have fewer bits than 16."""
        return any("quantization_config" in part for part in (self.config, self.config.get("text_config") or {}))

    @property
    def dense_config(self) -> dict[str, Any]:
        """Its config without what it says of quantization: that of a copy in 16 bits."""
        config = {key: value for key, value in self.config.items() if key != "quantization_config"}
        if "text_config" in config:
            text = config["text_config"]
            config["text_config"] = {key: value for key, value in text.items() if key != "quantization_config"}
        return config

    @property
    def note(self) -> str | None:
        """What of it is recalled and was not checked, for people; None where nothing is."""
        unchecked = self.provenance.get("unchecked")
        stored = "stored" in (unchecked or "")
        reads = ", and which cards and engines read them" if stored else ""
        return (
            f"{self.id}: {unchecked} recalled and unchecked in the catalog, so the size of its weights is assumed{reads}"
            if unchecked
            else None
        )


@lru_cache(maxsize=1)
def _lines() -> tuple[bytes, dict[str, int]]:
    """The file and where each model's line starts."""
    data = _FILE.read_bytes()
    return data, {match[1].decode(): match.start() for match in re.finditer(rb'^\{"id": "([^"]+)"', data, re.MULTILINE)}


def ids() -> tuple[str, ...]:
    """List every model of the catalog, as the Hub spells it."""
    return tuple(_lines()[1])


def entry(model: str) -> Entry:
    """Read the entry of an exact id. Raises KeyError."""
    data, starts = _lines()
    start = starts[model]
    line = json.loads(data[start : data.index(b"\n", start)])
    return Entry(line["id"], line["config"], line["provenance"])


@dataclass(frozen=True)
class PublishedRow:
    """A quantized checkpoint on the Hub: its id, the model it was made of, who says so, its format as `check --weights` names it where
    the name does not say, and what its config has otherwise than that model's (a padded width).
    """

    id: str
    of: str
    source: str
    weights: str | None = None
    config: Mapping[str, Any] | None = None


@lru_cache(maxsize=1)
def published() -> tuple[PublishedRow, ...]:
    """List every quantized checkpoint that is known to be published."""
    return tuple(PublishedRow(**row) for row in json.loads(_PUBLISHED.read_text(encoding="utf-8"))["models"])
