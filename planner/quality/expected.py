"""Expected loss of quality of a chain of passes: the rise of log-perplexity and the KL divergence, with intervals.

Weight formats and sparsity follow fits on published tables (`law`, made by `benchmarks/fit_quality.py`); what no table
supports is a stated assumption with a wide interval. Losses of a chain's passes add up: each is small, and the tables that
combine them (50 % SparseGPT with 4 bits; W4A8KV4) agree with the sum within their spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from passes.base import Pass
from passes.formats.kv_dtypes import OWN, measured_as
from passes.ir.distortions import CacheRounding, Distortion, Recovered, Removed, WeightRounding, Zeros
from passes.ir.model import ModelIR
from planner.quality.features import Traits
from planner.quality.law import interval, law, sensitivity, weight_loss
from planner.quality.traits import traits_of
from targets.quantity import Basis, Quantity


@dataclass(frozen=True, slots=True)
class Quality:
    """Rise of log-perplexity (nats a token) and KL divergence from the source (nats a token)."""

    log_ppl_increase: Quantity
    kl: Quantity


def growth(rise: float) -> float:
    """By which share perplexity grows where log-perplexity rises by so many nats a token: the one unit that people are shown."""
    return math.expm1(rise)


def perplexity_growth(rise: Quantity) -> Quantity:
    """`growth` with its interval."""
    return Quantity(growth(rise.value), growth(rise.low), growth(rise.high), rise.basis)


def expected_quality(ir: ModelIR, passes: Sequence[Pass]) -> Quality:
    """What a chain applied to the dense model `ir` is expected to cost."""
    traits = traits_of(ir)
    rise = Quantity.exact(0.0)
    for distortion in (distortion for pass_ in passes for distortion in pass_.distortions(ir)):
        rise = _after(rise, distortion, traits)
    return Quality(rise, _kl(rise))


def _after(rise: Quantity, distortion: Distortion, traits: Traits) -> Quantity:
    """Rise of log-perplexity so far, and by one distortion more."""
    match distortion:
        case WeightRounding():
            return rise + _weights(distortion, traits)
        case CacheRounding():
            return rise + cache_loss(traits, distortion.dtype)
        case Zeros():
            return rise + _zeros(distortion, traits)
        case Removed():
            return rise + _removed(distortion)
        case Recovered():
            return _recovered(rise, distortion.tokens)


def _kl(rise: Quantity) -> Quantity:
    """KL from the rise of log-perplexity: the two are nearly equal where the source is well calibrated on the text."""
    fit = law()["kl_ratio"]
    ratio, spread = fit["ratio"], 1 + fit["spread"]
    return Quantity(rise.value * ratio, rise.low * ratio / spread, rise.high * ratio * spread, rise.basis)


def _weights(rounding: WeightRounding, traits: Traits) -> Quantity:
    if len(rounding.shares) == 1 and rounding.shares[0][1] == 1:
        return weight_loss(traits, rounding.shares[0][0].rounding(rounding.method))
    # Losses of matrices add, each in proportion to its weights: nothing better is known before they are measured.
    rise = Quantity.exact(0.0)
    for form, share in rounding.shares:
        rise = rise + weight_loss(traits, form.rounding(rounding.method)).scaled(share)
    return rise


@lru_cache(maxsize=1024)
def cache_loss(traits: Traits, dtype: str) -> Quantity:
    """Rise by the KV cache's type. Models that lose more by rounding weights lose more by rounding the cache."""
    dtype = measured_as(dtype)
    if dtype == OWN:
        return Quantity.exact(0.0)
    fitted = law()["kv"].get(dtype)
    if fitted is not None:
        return interval(math.exp(sensitivity(traits) + fitted["ln"]), fitted["spread"])
    # e4m3, 6 and 8 bits: within the noise of the tables that hold them (llama.cpp prints +0.003 of about 6 for q8_0).
    most = 0.003 if dtype == "q8" else 0.01
    return Quantity(most / 5, 0.0, most, Basis.ASSUMED)


def _zeros(zeros: Zeros, traits: Traits) -> Quantity:
    fit = law()["sparsity"]
    named = {"unstructured": "50%"}.get(zeros.pattern, zeros.pattern)
    c = fit["coefficients"]
    ln = c["constant"] + c["log_size"] * math.log(traits.size_b / 7) + c["log_tokens"] * math.log(traits.tokens_t / 2)
    ln += c.get(f"method:{zeros.method}", 0.0) + c.get(f"pattern:{named}", 0.0)
    # The tables stand at 50 %; the loss vanishes with the sparsity and grows steeply above.
    ln += _SPARSITY_POWER * math.log(max(zeros.share, 0.01) / 0.5)
    return interval(math.exp(min(ln, law()["ceiling_ln"])), fit["spread"])


_SPARSITY_POWER = 4.0
#: Scale and power of the loss by what was removed, without recovery. Blocks: ShortGPT (arXiv 2403.03853) prints 8.0 -> 40.8 for 26 % of
#: the layers. Weights: LLM-Pruner (arXiv 2305.11627) prints 12.6 -> about 19.4 for 20 % of LLaMA-7B's.
_REMOVED = {"blocks": (21.0, 1.9), "weights": (4.8, 1.5)}


def _removed(removed: Removed) -> Quantity:
    """Rise by taking parts away: scale · share^power."""
    scale, power = _REMOVED[removed.what]
    return interval(scale * removed.share**power, 0.7, Basis.ASSUMED)


def _recovered(rise: Quantity, tokens: int) -> Quantity:
    """What distillation leaves of the loss so far: (1 + tokens / 2.8e6)^-0.34.

    Through LLM-Pruner's LLaMA-7B at 20 %, seven-task average 63.25: 56.8 untuned, 60.1 after about 2e7 tokens, 62.4 after 1e9.
    """
    left = (1 + tokens / 2.8e6) ** -0.34
    return interval(rise.value * left, math.log(max(2.0, rise.high / max(rise.value, 1e-9))), Basis.ASSUMED)
