"""config.json after a structural pass: the same fields, with the sizes of what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from passes.errors import InputError
from passes.ir.architectures import build_ir
from passes.ir.architectures.config import Config
from passes.ir.model import Block, ModelIR

#: What families call the number of layers.
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
#: Where multimodal models keep the config of their decoder.
_DECODER_PARTS = ("text_config", "llm_config", "language_config")
#: Parts of a decoder's config that have lists with one entry a layer (MiniMax M3) or of layers (Kimi Linear).
_LAYER_PARTS = ("linear_attn_config", "sparse_attention_config")
#: Lists of layers, and the number of the first one.
_LAYER_LISTS = {
    "mlp_only_layers": 0, "moe_layers": 0, "cross_attention_layers": 0, "full_attn_layers": 1, "kda_layers": 1,
}  # fmt: skip
#: How many layers at the start, or at the end, are of a kind.
_LEADING = ("first_k_dense_replace", "num_hash_layers", "max_window_layers")
_TRAILING = ("num_kv_shared_layers",)
#: One letter a layer (Nemotron-H).
_LETTERS = ("hybrid_override_pattern",)
#: Families that leave out the rotary embedding in every n-th layer unless `no_rope_layers` says where (0: left out).
_NO_ROPE = frozenset({"smollm3", "llama4_text"})


def config_describes(config: Mapping[str, Any], change: Callable[[ModelIR], ModelIR], *, assumed: bool) -> bool:
    """Return whether the config of what `change` makes of the model that a config describes says just that: engines read nothing else.

    `assumed`: the answer for a config that is read under an assumption only.
    """
    try:
        whole = build_ir(config, "")
    except InputError:
        return assumed
    wanted = change(whole)
    try:
        said = build_ir(wanted.config, "")
    except InputError:
        return False
    kinds = {stack.name for stack in wanted.stacks}  # a config may describe layers that a checkpoint may leave out
    stacks = tuple(stack for stack in said.stacks if stack.name in kinds)
    return (stacks, said.outer, said.outer_tensors) == (wanted.stacks, wanted.outer, wanted.outer_tensors)


def with_blocks_changed(ir: ModelIR, change: Callable[[Block], Block]) -> ModelIR:
    """Return a model with the decoder's blocks changed. Layers that predict further tokens and would have to change too are left out.

    The same config describes them, and no text goes through them here.
    """
    stacks = tuple(stack for stack in ir.stacks if stack.name != "mtp" or stack.map_blocks(change) == stack)
    config = ir.config
    if stacks != ir.stacks:
        config = change_decoder(config, lambda part: set_present(part, ("num_nextn_predict_layers",), 0))
    return replace(ir, stacks=stacks, config=config).with_decoder(ir.decoder.map_blocks(change))


def change_decoder(config: Mapping[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Copy a config with its decoder part (`text_config` where there is one) changed by `change`."""
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
    """Find the part of a config that describes the decoder."""
    part = config.get("text_config")
    return part if isinstance(part, Mapping) and any(key in part for key in LAYER_COUNTS) else config


def set_present(part: dict[str, Any], keys: Sequence[str], value: int) -> None:
    """Set those of `keys` that the config has."""
    for key in keys:
        if key in part:
            part[key] = value


def with_fewer_layers(
    config: Mapping[str, Any], kept: Sequence[int], depth: int, kinds: Sequence[str] = ()
) -> dict[str, Any]:
    """Make a config.json for the layers `kept` of `depth`: their number, and everything that speaks of single layers.

    `kinds`: a `layer_types` entry for every layer, written where layers differ and the config told them by their number.
    What stands beside the decoder (a vision tower) stays.
    """
    nested = [key for key in _DECODER_PARTS if isinstance(config.get(key), Mapping)]
    out = dict(config)
    for key in nested:
        out[key] = _fewer(config[key], kept, depth, kinds)
    if not nested or any(config.get(key) == depth for key in LAYER_COUNTS):
        out = _fewer(out, kept, depth, () if nested else kinds)
    return out


def _fewer(part: Mapping[str, Any], kept: Sequence[int], depth: int, kinds: Sequence[str]) -> dict[str, Any]:
    before = dict(part) | _spelt_out(part, depth, kinds)
    out = {key: _of_layers(key, value, kept, depth, _predicting(part)) for key, value in before.items()}
    for key in _LAYER_PARTS:
        if isinstance(inner := before.get(key), Mapping):
            out[key] = {name: _of_layers(name, value, kept, depth, 0) for name, value in inner.items()}
    names = [name for name in LAYER_COUNTS if part.get(name) == depth]
    return out | dict.fromkeys(names or ["num_hidden_layers"], len(kept))


def _spelt_out(part: Mapping[str, Any], depth: int, kinds: Sequence[str]) -> dict[str, Any]:
    """As lists with one entry a layer, what the config leaves to the layer's number."""
    out: dict[str, Any] = {}
    if len(set(kinds)) > 1 and not part.get("layer_types"):
        out["layer_types"] = list(kinds)
    if str(part.get("model_type")) in _NO_ROPE and not part.get("no_rope_layers"):
        interval = Config(part, "the model").integer("no_rope_layer_interval", default=4)
        out["no_rope_layers"] = [int((layer + 1) % interval != 0) for layer in range(depth)]
    step = part.get("interleave_moe_layer_step")
    if isinstance(step, int) and step > 1 and part.get("moe_layers") is None:
        out["moe_layers"] = list(range(step - 1, depth, step))
    return out


def _predicting(part: Mapping[str, Any]) -> int:
    """Layers that predict further tokens: some lists have an entry for them too (DeepSeek V4's `compress_ratios`)."""
    count = part.get("num_nextn_predict_layers")
    return count if isinstance(count, int) else 0


def _of_layers(key: str, value: Any, kept: Sequence[int], depth: int, more: int) -> Any:
    """A field's value for the layers kept. A list of numbers of tokens is not one of layers."""
    if key in _LAYER_LISTS and isinstance(value, list):
        first = _LAYER_LISTS[key]
        return [new + first for new, old in enumerate(kept) if old + first in value]
    if key in _LEADING and isinstance(value, int):
        return sum(layer < value for layer in kept)
    if key in _TRAILING and isinstance(value, int):
        return sum(layer >= depth - value for layer in kept)
    if key in _LETTERS and isinstance(value, str) and len(value) == depth:
        return "".join(value[layer] for layer in kept)
    each_layer = isinstance(value, list) and len(value) in (depth, depth + more) and depth > 1
    if each_layer and key != "architectures" and not key.endswith(("token_id", "token_ids")):
        return [value[layer] for layer in kept] + value[depth:]
    return value
