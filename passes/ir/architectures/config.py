"""Reading a config.json strictly: a field that is missing or of another type is an error that names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.errors import InputError

ESCAPE = (
    "If every layer keeps full keys and values, `assume: full-attention` in the spec reads it as a Llama-like model."
)

_DTYPES = {
    "bfloat16": "BF16", "float16": "F16", "half": "F16", "float32": "F32", "float": "F32", "bf16": "BF16", "fp16": "F16", "fp32": "F32",
}  # fmt: skip


def not_understood(name: str, what: str) -> InputError:
    """The error that ends reading at the first thing not understood."""
    return InputError(f"{name}: {what}", remedy=ESCAPE)


@lru_cache(maxsize=1)
def _class_defaults() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("defaults.json").read_text())["defaults"]
    return table


class Config:
    """A config.json (or a part of it) with typed, strict access; `name` is the model, for messages.

    `kind`: the model_type whose class defaults complete a nested part, because transformers leaves them out there.
    """

    def __init__(self, values: Mapping[str, Any], name: str, path: str = "config.json", kind: str = "") -> None:
        self.values = values
        self.name = name
        self.path = path
        self.kind = kind

    def has(self, field: str) -> bool:
        """Whether the field is present and not null."""
        return self.values.get(field) is not None

    def get(self, *fields: str, default: Any = None) -> Any:
        """The first of the fields that is present and not null, as it is."""
        for field in fields:
            if (value := self.values.get(field)) is not None:
                return value
        if self.kind:
            defaults = _class_defaults().get(self.kind, {})
            return next((defaults[field] for field in fields if field in defaults), default)
        return default

    def integer(self, *fields: str, default: int | None = None) -> int:
        """The first of the fields that is present, a whole number of at least 0."""
        value = self.get(*fields, default=default)
        if value is None:
            raise not_understood(self.name, f"{self.path} lacks {fields[0]!r}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise not_understood(self.name, f"{self.path}: {fields[0]!r} should be a whole number, found {value!r}")
        return value

    def flag(self, *fields: str, default: bool = False) -> bool:
        """The first of the fields that is present, true or false."""
        value = self.get(*fields, default=default)
        if not isinstance(value, bool):
            raise not_understood(self.name, f"{self.path}: {fields[0]!r} should be true or false, found {value!r}")
        return value

    def text(self, field: str, default: str) -> str:
        """A string field."""
        value = self.get(field, default=default)
        if not isinstance(value, str):
            raise not_understood(self.name, f"{self.path}: {field!r} should be a string, found {value!r}")
        return value

    def items(self, field: str, length: int | None = None) -> list[Any]:
        """A list field, of `length` entries where that is given."""
        value = self.get(field)
        if not isinstance(value, list) or (length is not None and len(value) != length):
            wanted = "a list" if length is None else f"a list of {length}"
            found = f"{len(value)} entries" if isinstance(value, list) else repr(value)
            raise not_understood(self.name, f"{self.path}: {field!r} should be {wanted}, found {found}")
        return value

    def part(self, *fields: str, kind: str | None = None) -> Config:
        """A nested config (`text_config`), the first of the fields that is there, completed by its class's defaults.

        `kind`: its model_type where the file does not say it (or says the whole model's).
        """
        value = self.get(*fields, default={} if kind else None)
        if not isinstance(value, Mapping):
            raise not_understood(self.name, f"{self.path} lacks {fields[0]!r}")
        return Config(value, self.name, f"{self.path}: {fields[0]}", kind or str(value.get("model_type") or ""))

    def text_part(self) -> Config:
        """The config of the text decoder: a nested one where there is one, else this one."""
        fields = [field for field in ("text_config", "llm_config", "language_config") if self.has(field)]
        return self.part(fields[0]) if fields and "hidden_size" not in self.values else self

    def dtype(self) -> str | None:
        """The dtype of the weights in safetensors' spelling, None where the config does not say."""
        value = self.get("dtype", "torch_dtype")
        if value is None or value == "auto":
            return None
        if value not in _DTYPES:
            raise not_understood(self.name, f"{self.path}: dtype {value!r} is none of bfloat16, float16, float32")
        return _DTYPES[value]

    def layer_numbers(self) -> range:
        """The layer indices of the decoder."""
        return range(self.integer("num_hidden_layers", "n_layer", "num_layers"))
