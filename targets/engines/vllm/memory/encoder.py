"""What vision encoders take in vLLM's profile run: the largest items that fit a batch go through them, their outputs stay meanwhile.

Sources: vLLM 0.32's `multimodal/encoder_budget.py:MultiModalBudget` (how many items), and `get_mm_max_tokens_per_item` of the families in
`model_executor/models/` (how large one may be; limits that a preprocessor's config sets are those of the published ones).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from passes.ir.architectures.config import Config
from passes.ir.fields import Fields
from passes.ir.model import Block, ModelIR, Role
from passes.record import dataclass
from targets.engines.vllm.rules.versions import ALWAYS, Rules, Version, at_version

#: Tokens of Qwen's largest image (16,384 × 28² or 32² pixels), frames pairs of a video (`_MAX_FRAMES_PER_VIDEO` 14), patches a token.
_QWEN_TOKENS, _QWEN_PAIRS, _QWEN_MERGED = 16384, 7, 4
#: Qwen3-VL's video, which its frames share (24,576 × 32² pixels, two frames a token), and what a token of it counts with its frame's time
#: written out (`rules.counts_times`): outputs are kept at that size.
_QWEN3_VIDEO, _WITH_TIMES = 12288, 12.5
#: Gemma 4's video: frames, its tokens a frame with and without marks, patches pooled to a token (`gemma4_mm.py`).
_FRAMES, _FRAME_TOKENS, _FRAME_SOFT_TOKENS, _POOLED = 32, 78, 70, 9
#: Of a picture's side: more is no picture.
_MOST_PIXELS = 1 << 16
_MLP = {Role.UP, Role.GATE, Role.GATE_UP}


@dataclass(frozen=True, slots=True)
class Item:
    """The largest image or video: its tokens for the decoder, its patches for the encoder."""

    tokens: int
    patches: int


def largest_item(ir: ModelIR, context: int, rules: Rules, *, pictures: bool = False) -> Item | None:
    """Return the largest item of a family whose rule was read, None for others. `pictures`: only those are let in, no videos."""
    family, config = _FAMILIES.get(ir.model_type), Config(ir.config, ir.name)
    if family is None or not config.has("vision_config") or _vision_block(ir) is None:
        return None
    if ir.model_type in _WRITES_TIMES and rules.counts_times and not pictures:
        return Item(int(_QWEN3_VIDEO * _WITH_TIMES), _QWEN3_VIDEO * _QWEN_MERGED)
    rule = _PICTURES.get(ir.model_type, family) if pictures else family
    return rule(config, config.inside("vision_config"), context)


def _qwen2(config: Config, vision: Fields, context: int) -> Item:
    """A video of as many frames as the context holds, each as large as an image."""
    tokens = _QWEN_TOKENS * min(max(context // _QWEN_TOKENS, 1), _QWEN_PAIRS)
    return Item(tokens, tokens * _QWEN_MERGED)


def _qwen3(config: Config, vision: Fields, context: int) -> Item:
    return Item(_QWEN_TOKENS, _QWEN_TOKENS * _QWEN_MERGED)


def _gemma3(config: Config, vision: Fields, context: int) -> Item:
    side = max(1, _pixels(vision, 896) // vision.integer("patch_size", default=14, at_least=1))
    return Item(config.integer("mm_tokens_per_image", default=256), side**2)


def _gemma4(config: Config, vision: Fields, context: int) -> Item:
    return Item(_FRAMES * _FRAME_TOKENS, _FRAMES * _FRAME_SOFT_TOKENS * _POOLED)


def _pixtral(config: Config, vision: Fields, context: int) -> Item:
    merge = config.integer("spatial_merge_size", default=1)
    # Left out where they are the class's own (transformers' PixtralVisionConfig).
    side = max(1, _pixels(vision, 1024) // (vision.integer("patch_size", default=16, at_least=1) * merge))
    return Item(side * (side + 1), (side * merge) ** 2)


def _pixels(vision: Fields, default: int) -> int:
    return vision.integer("image_size", default=default, at_least=1, at_most=_MOST_PIXELS)


_FAMILIES: dict[str, Callable[[Config, Fields, int], Item]] = {
    "qwen2_vl": _qwen2, "qwen2_5_vl": _qwen2, "qwen3_vl": _qwen3, "qwen3_vl_moe": _qwen3, "qwen3_5": _qwen3, "qwen3_5_moe": _qwen3,
    "gemma3": _gemma3, "gemma4": _gemma4, "mistral3": _pixtral,
}  # fmt: skip


#: Of these families, those that take videos (`get_supported_mm_limits`).
_SEES_VIDEOS = frozenset(_FAMILIES) - {"gemma3", "mistral3"}

#: Families whose videos' frames carry their times as text.
_WRITES_TIMES = frozenset({"qwen3_vl", "qwen3_vl_moe"})

#: Families whose largest item is a video, by their largest picture.
_PICTURES: dict[str, Callable[[Config, Fields, int], Item]] = {"qwen2_vl": _qwen3, "qwen2_5_vl": _qwen3}


def sees_videos(ir: ModelIR) -> bool:
    """Return whether a model is of a family that is known to take videos beside pictures."""
    return ir.model_type in _SEES_VIDEOS


def whole_item(ir: ModelIR, context: int, rules: Rules) -> int:
    """Return the tokens of the largest picture or video where a step must hold all of it; 0 where it may be cut."""
    config = Config(ir.config, ir.name)
    text = config.inside("text_config", config.values)
    if not rules.whole_items or ir.model_type != "gemma4" or text.get("use_bidirectional_attention") != "vision":
        return 0
    item = largest_item(ir, context, rules)
    return item.tokens if item is not None else 0


def _vision_block(ir: ModelIR) -> Block | None:
    return next((stack.counts[0][0] for stack in ir.stacks if stack.name == "vision"), None)


#: Families whose encoders collect queries, keys and values of all ranks on each (`split_qkv` of `models/qwen2_vl.py`, `qwen2_5_vl.py`), by
#: version.
_GATHERED: dict[str, tuple[tuple[Version, bool], ...]] = {
    "qwen2_vl": ((ALWAYS, True), ((0, 11, 1), False), ((0, 13, 0), True)),
    "qwen2_5_vl": ((ALWAYS, True), ((0, 11, 1), False)),
}


def gathers_heads(model_type: str, rules: Rules) -> bool:
    """Return whether each rank's encoder of a family collects the heads of all ranks."""
    return bool(at_version(_GATHERED.get(model_type, ()), rules.version))


#: Families whose blocks keep what the attention put out, and both results of the norm behind it, through the feed-forward
#: (`residual=x_attn` in `models/qwen2_5_vl.py`): how many of the encoder's width that is with its input and output.
_KEEPS_RESIDUALS = {"qwen2_5_vl": 5}


def _widths(model_type: str, rules: Rules) -> int:
    return _KEEPS_RESIDUALS.get(model_type, 2) if rules.keeps_residuals else 2


@lru_cache(maxsize=1 << 10)
def _patch_elements(block: Block, tp: int, gathers: bool, widths: int) -> float:
    """Elements a patch that a layer of the encoder holds: so many of its width beside the feed-forward's outputs with their product,
    or two beside a rank's queries, keys and values, those of all ranks and these in the order of heads.
    """
    inner = [lin.out_features for lin in block.linears if lin.role in _MLP]
    width = max(lin.in_features for lin in block.linears if lin.role in _MLP)
    attention = 3 * width * (1 / tp + 2) if gathers and tp > 1 else 0.0
    return max(widths * width + (sum(inner) + max(inner)) / tp, 2 * width + attention)


def encoder_bytes(ir: ModelIR, item: Item, rules: Rules, *, tokens: int, most: int, tp: int) -> tuple[float, float]:
    """Return the bytes of the outputs that are kept, and of a layer at work, for a batch of so many tokens and items at most."""
    block = _vision_block(ir)
    assert block is not None
    items = max(1, min(max(tokens, item.tokens) // item.tokens, most))
    deep = len(Config(ir.config, ir.name).inside("vision_config").items("deepstack_visual_indexes", default=()))
    outputs = items * item.tokens * ir.hidden_size * (1 + deep) * 2
    elements = _patch_elements(block, tp, gathers_heads(ir.model_type, rules), _widths(ir.model_type, rules))
    return outputs, items * item.patches * elements * 2


def encodes(ir: ModelIR) -> bool:
    """Return whether a stack encodes pictures or sound."""
    return any(stack.name in ("vision", "audio") for stack in ir.stacks)
