"""config.json after a structural pass: the same fields, with the sizes of what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: What families call the number of layers.
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")


def change_decoder(config: Mapping[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A copy whose decoder part (`text_config` where there is one) was changed by `change`."""
    out = dict(config)
    part = out.get("text_config")
    if isinstance(part, Mapping) and any(key in part for key in LAYER_COUNTS):
        inner = dict(part)
        change(inner)
        out["text_config"] = inner
    else:
        change(out)
    return out


def decoder_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the decoder."""
    part = config.get("text_config")
    return part if isinstance(part, Mapping) and any(key in part for key in LAYER_COUNTS) else config


def set_present(part: dict[str, Any], keys: Sequence[str], value: int) -> None:
    """Set those of `keys` that the config has."""
    for key in keys:
        if key in part:
            part[key] = value
