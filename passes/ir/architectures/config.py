"""A config.json as families read it: the keys of `passes.ir.fields`, with class defaults, and what may count how far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.ir.fields import LARGEST, MOST_EXPERTS, MOST_LAYERS, Fields

ESCAPE = (
    "If every layer keeps full keys and values, `assume: full-attention` in the spec reads it as a Llama-like model."
)

_DTYPES = {
    "bfloat16": "BF16", "float16": "F16", "half": "F16", "float32": "F32", "float": "F32", "bf16": "BF16", "fp16": "F16", "fp32": "F32",
}  # fmt: skip

#: Keys that may say 0: none of them, or from the first layer on.
_FROM_ZERO = frozenset(
    {"first_k_dense_replace", "max_window_layers", "num_hash_layers", "n_shared_experts", "num_shared_experts"}
)
#: Keys that count what is walked through one by one.
_AT_MOST = dict.fromkeys(
    (
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "num_global_layers", "num_nextn_predict_layers",
        "mtp_num_hidden_layers",
    ),
    MOST_LAYERS,
) | dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), MOST_EXPERTS)  # fmt: skip


def not_understood(name: str, what: str) -> InputError:
    """Make the error that ends reading at the first thing not understood."""
    return InputError(f"{name}: {what}", remedy=ESCAPE)


@lru_cache(maxsize=1)
def _class_defaults() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("defaults.json").read_text())["defaults"]
    return table


class Config(Fields):
    """A config.json, or a part of it. `name` is the model, for messages.

    `kind`: the model_type whose class defaults complete a nested part, because transformers leaves them out there.
    """

    def __init__(self, values: Mapping[str, Any], name: str, path: str = "config.json", kind: str = "") -> None:
        super().__init__(values, name, path)
        self.kind = kind

    def get(self, *fields: str, default: Any = None) -> Any:
        """Find a value as `Fields.get` does, completed by the class's defaults."""
        if (value := super().get(*fields)) is not None or not self.kind:
            return default if value is None else value
        defaults = _class_defaults().get(self.kind, {})
        return next((defaults[field] for field in fields if field in defaults), default)

    def integer(
        self, *fields: str, default: int | None = None, at_least: int | None = None, at_most: int | None = None
    ) -> int:
        """Read a whole number: at least 1 unless 0 has a meaning (the default, or as `_FROM_ZERO` says), at most as `_AT_MOST` says."""
        zero = default == 0 or fields[0] in _FROM_ZERO
        least = (0 if zero else 1) if at_least is None else at_least
        return super().integer(
            *fields, default=default, at_least=least, at_most=at_most or _AT_MOST.get(fields[0], LARGEST)
        )

    def part(self, *fields: str, kind: str | None = None) -> Config:
        """Open a nested config (`text_config`), the first of the fields that is there, completed by its class's defaults.

        `kind`: its model_type where the file does not say it (or says the whole model's).
        """
        field = next((field for field in fields if self.has(field)), fields[0])
        value = self.mapping(field, {} if kind else None)
        path = f"{self.path}: {field}"
        return Config(value, self.name, path, kind or Fields(value, self.name, path).text("model_type", ""))

    def text_part(self) -> Config:
        """Find the config of the text decoder: a nested one where there is one, else this one."""
        fields = [field for field in ("text_config", "llm_config", "language_config") if self.has(field)]
        return self.part(fields[0]) if fields and "hidden_size" not in self.values else self

    def dtype(self) -> str | None:
        """Read the dtype of the weights in safetensors' spelling, None where the config does not say."""
        said = "dtype" if self.has("dtype") else "torch_dtype"
        if (value := self.text(said, "auto")) == "auto":
            return None
        # Configs of transformers before 4.13, and hand-written ones, name torch's object.
        plain = value.removeprefix("torch.")
        if plain not in _DTYPES:
            raise self.wrong(said, "bfloat16, float16 or float32", value)
        return _DTYPES[plain]

    def layer_numbers(self) -> range:
        """List the layer indices of the decoder."""
        return range(self.integer("num_hidden_layers", "n_layer", "num_layers"))
