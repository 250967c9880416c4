"""How long an encoder works on the pictures of a request, before its prompt is computed."""

from __future__ import annotations

from passes.ir.architectures.config import Config
from passes.ir.model import ModelIR
from targets.speed.step import Card, Rates
from targets.workload import Workload


def encoding_s(ir: ModelIR, card: Card, rates: Rates, workload: Workload, tp: int) -> float:
    """Return the seconds that the pictures of one request take in the vision encoder, cut over `tp` cards.

    Its matrices are computed at the rate of the decoder's of the same form; attention among a picture's patches is not counted.
    """
    if not workload.pictures:
        return 0.0
    patches = workload.pictures * workload.picture_tokens * _patches_of_token(ir)
    seconds = 0.0
    for stack in ir.stacks:
        for block, count in stack.counts if stack.name == "vision" else ():
            for linear in block.linears:
                kernel = card.kernel(linear.storage)
                rate = card.rate(kernel.arithmetic) * rates.compute[kernel.family]
                seconds += 2 * count * linear.weights * patches / (rate * tp)
    return seconds


def _patches_of_token(ir: ModelIR) -> float:
    """Patches of a picture that become one of the decoder's tokens: merged squares (Qwen, Pixtral), or pooled to a fixed number (Gemma)."""
    config = Config(ir.config, ir.name)
    if not config.has("vision_config"):
        return 1.0
    vision = config.inside("vision_config")
    if config.has("mm_tokens_per_image") and vision.has("image_size"):
        side, patch = vision.integer("image_size"), vision.integer("patch_size", default=14, at_least=1)
        return max(1.0, (side // patch) ** 2 / config.integer("mm_tokens_per_image", at_least=1))
    merged = config.integer("spatial_merge_size", default=1, at_least=1)
    return float(vision.integer("spatial_merge_size", default=merged, at_least=1) ** 2)
