"""What the quality fit sees of a weight format and of a model: named numbers, the same for fitting and for predicting.

The rise of log-perplexity is modelled as a product, so its logarithm is a sum over these features:

    ln rise = sensitivity of the model  +  distortion of the rounding  +  how the family takes this method

* Distortion of a uniform quantizer falls by 4 per bit (its step halves, the squared error quarters); methods may deviate.
  The squared step of a group grows with the expected range of its weights, which for Gaussian weights follows
  from the order statistics of `group_size` samples (Blom's approximation). Below 3 bits the loss bends upwards.
* Sensitivity grows with training tokens and falls with size (Kumar et al. 2024, "Scaling laws for precision",
  arXiv 2411.04330); families and models deviate from that by effects that are shrunk towards zero, so an unseen model
  inherits its family's figure and an unseen family the trend. Below 2 · 10^9 weights sensitivity rises with a slope of its own;
  for each format that rounds activations with another: the outliers that make 8-bit integers costly there come with size (Dettmers
  et al. 2022, "LLM.int8()", arXiv 2208.07339, section 4), and floats of 8 bits hardly mind them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from passes.formats.format import Rounding

Features = tuple[tuple[str, float], ...]

_REFERENCE_BITS = 4.0
_BEND_BITS = 3.0
_REFERENCE_GROUP = 128
_SMALL_MODEL_B = 2.0
#: Methods whose formats round what a matrix reads, too.
_ROUNDS_ACTIVATIONS = ("w8a8", "fp8", "nvfp4", "mxfp4", "mxfp8", "atom-w4a4", "quarot-w4a4")


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of a model's sensitivity: its family, its size in 10^9 weights, its training tokens in 10^12.

    `tuned`: an instruct or chat model, whose perplexity on plain text has room that the base model's has not.
    """

    family: str
    size_b: float
    tokens_t: float
    tuned: bool = False


@lru_cache(maxsize=256)
def group_range(group_size: int) -> float:
    """ln of the expected squared range of `group_size` Gaussian weights against that of 128; one weight has none, and counts as two."""

    def spread(n: int) -> float:
        return NormalDist().inv_cdf((n - 0.375) / (n + 0.25))

    return 2 * math.log(spread(max(group_size, 2)) / spread(_REFERENCE_GROUP))


@lru_cache(maxsize=4096)
def rounding_features(rounding: Rounding) -> Features:
    """Features of the rounding alone."""
    method = rounding.method
    found = [(f"method:{method}", 1.0)]
    if not rounding.bits:
        return tuple(found)
    fewer = _REFERENCE_BITS - rounding.bits
    bend = max(0.0, _BEND_BITS - rounding.bits)
    found += [("fewer_bits", fewer), (f"fewer_bits:{method}", fewer)]
    if bend:
        found += [("bend", bend), (f"bend:{method}", bend)]
    if rounding.group_size < 0:
        found += [("channel", 1.0), (f"channel:{method}", 1.0), (f"channel_fewer_bits:{method}", fewer)]
        if bend:
            found.append((f"channel_bend:{method}", bend))
    elif rounding.group_size > 0:
        found.append(("group_range", group_range(rounding.group_size)))
    return tuple(found)


def model_key(traits: Traits) -> str:
    """The key of a model's own effect: family and size to two digits."""
    return f"{traits.family}/{traits.size_b:.2g}"


def _smallness(traits: Traits) -> float:
    """By how many e-folds a model is smaller than 2 · 10^9 weights; 0 where it is not."""
    return max(0.0, math.log(_SMALL_MODEL_B / traits.size_b))


@lru_cache(maxsize=4096)
def model_features(traits: Traits) -> Features:
    """Features of the model alone."""
    size = math.log(traits.size_b / 7)
    return (
        ("constant", 1.0),
        ("log_tokens", math.log(traits.tokens_t / 2)),
        ("log_size", size),
        ("tuned", float(traits.tuned)),
        ("small", _smallness(traits)),
        (f"family:{traits.family}", 1.0),
        (f"family_log_size:{traits.family}", size),
        (f"model:{model_key(traits)}", 1.0),
    )


@lru_cache(maxsize=4096)
def joint_features(rounding: Rounding, traits: Traits) -> Features:
    """How a family, a size and a model take a method."""
    family, model, size = traits.family, model_key(traits), math.log(traits.size_b / 7)
    found = [
        (f"family_method:{family}/{rounding.method}", 1.0),
        (f"model_method:{model}/{rounding.method}", 1.0),
        (f"log_size_method:{rounding.method}", size),
        (f"family_log_size_method:{family}/{rounding.method}", size),
        (f"log_tokens_method:{rounding.method}", math.log(traits.tokens_t / 2)),
    ]
    if rounding.bits:
        fewer = _REFERENCE_BITS - rounding.bits
        found += [
            ("log_size_fewer_bits", size * fewer),
            (f"family_fewer_bits:{family}", fewer),
            (f"model_fewer_bits:{model}", fewer),
        ]
    if rounding.group_size < 0:
        found.append((f"family_channel:{family}", 1.0))
    if rounding.method in _ROUNDS_ACTIVATIONS and (small := _smallness(traits)):
        found.append((f"small_method:{rounding.method}", small))
    return tuple(found)
