"""Expected loss of quality of a chain of passes: the rise of log-perplexity and the KL divergence, with intervals.

Formats, zeros and what is removed follow one fit on published tables and measurements (`law`, made by `benchmarks/fit_quality.py`); what
no table supports is a stated assumption with a wide interval. Losses of a chain's passes add up: each is small, and the tables that
combine them (50 % SparseGPT with 4 bits; W4A8KV4) agree with the sum within their spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from passes.base import Pass
from passes.formats.kv_dtypes import OWN, cache_bits, measured_as
from passes.ir.distortions import CacheRounding, Distortion, Recovered, Removed, WeightRounding, Zeros
from passes.ir.model import ModelIR, remembered
from passes.record import dataclass
from planner.quality.features import Traits, scheme
from planner.quality.law import law, loss
from planner.quality.recovery import recovered
from planner.quality.traits import traits_of
from targets.quantity import Basis, Quantity, weaker


@dataclass(frozen=True, slots=True)
class Quality:
    """Rise of log-perplexity (nats a token) and KL divergence from the source (nats a token)."""

    log_ppl_increase: Quantity
    kl: Quantity


def growth(rise: float) -> float:
    """Return the share by which perplexity grows where log-perplexity rises by so many nats a token: the one unit that people are shown."""
    return math.expm1(rise)


def perplexity_growth(rise: Quantity) -> Quantity:
    """Return `growth` with its interval."""
    return Quantity(growth(rise.value), growth(rise.low), growth(rise.high), rise.basis)


def expected_quality(ir: ModelIR, passes: Sequence[Pass]) -> Quality:
    """Return what a chain applied to the dense model `ir` is expected to cost."""
    return _expected(ir, tuple(passes))


@remembered
def _expected(ir: ModelIR, passes: tuple[Pass, ...]) -> Quality:
    traits = traits_of(ir)
    rise = Quantity.exact(0.0)
    for distortion in sorted((distortion for pass_ in passes for distortion in pass_.distortions(ir)), key=_turn):
        rise = _after(rise, distortion, traits)
    rise = _at_most(rise, math.log(ir.vocab_size)) if ir.vocab_size > 1 else rise
    return Quality(rise, _kl(rise))


def _at_most(rise: Quantity, guessing: float) -> Quantity:
    """A rise no higher than that of who knows nothing and takes every token for equally likely: perplexity is the vocabulary's size."""
    if rise.high <= guessing:
        return rise
    return Quantity(min(rise.value, guessing), min(rise.low, guessing), guessing, rise.basis)


def _turn(distortion: Distortion) -> int:
    """When a distortion has its effect: in the order of the chain, but blocks are tuned as they are stored, so after their rounding."""
    match distortion:
        case Recovered(method="blockwise"):
            return 1
        case CacheRounding():
            return 2
    return 0


def _after(rise: Quantity, distortion: Distortion, traits: Traits) -> Quantity:
    """Rise of log-perplexity so far, and by one distortion more."""
    match distortion:
        case WeightRounding():
            return rise + _weights(distortion, traits)
        case CacheRounding():
            return rise + cache_loss(traits, distortion)
        case Zeros() | Removed():
            return rise + loss(traits, distortion)
        case Recovered():
            return recovered(rise, distortion.tokens, distortion.method, adapters=distortion.adapters)


def _kl(rise: Quantity) -> Quantity:
    """KL from the rise of log-perplexity: the two are nearly equal where the source is well calibrated on the text."""
    fit = law()["kl_ratio"]
    ratio, spread = fit["ratio"], 1 + fit["spread"]
    return Quantity(rise.value * ratio, rise.low * ratio / spread, rise.high * ratio * spread, rise.basis)


def _weights(rounding: WeightRounding, traits: Traits) -> Quantity:
    # Losses of matrices add, each in proportion to its weights: nothing better is known before they are measured. What is not known of
    # the model is the same for all of them, so the ends of their intervals add, too.
    parts = [loss(traits, form.rounding(rounding.method)).scaled(share) for form, share in rounding.shares]
    return Quantity(
        sum(part.value for part in parts),
        sum(part.low for part in parts),
        sum(part.high for part in parts),
        weaker(Basis.EXACT, *(part.basis for part in parts)),
    )


#: What a cache loses whose loss is within the noise of the tables that hold one (llama.cpp prints +0.003 of about 6 for q8_0; vLLM's FP8
#: runs lie on both sides of the unrounded ones): of 8 bits or more, whoever makes it, so that no such type is a reason for an
#: engine; of fewer.
_EIGHT_BITS, _FEWER_BITS, _MOST = 0.001, 0.002, 0.01


def _fine(dtype: str) -> Quantity:
    return Quantity(_EIGHT_BITS if cache_bits(dtype) >= 8 else _FEWER_BITS, 0.0, _MOST, Basis.ASSUMED)


@lru_cache(maxsize=1024)
def cache_loss(traits: Traits, cache: CacheRounding) -> Quantity:
    """Rise by the KV cache's type; what a table holds loses its fitted part besides."""
    stands, share = measured_as(cache.dtype)
    if stands == OWN:
        return Quantity.exact(0.0)
    fine, cache = _fine(cache.dtype), replace(cache, dtype=stands)
    if scheme(cache) not in law()["schemes"]:
        return fine
    coarser = loss(traits, cache).scaled(share)
    return Quantity(coarser.value + fine.value, coarser.low, coarser.high + fine.value, coarser.basis)
