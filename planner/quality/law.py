"""The fitted law of loss (`quality_fit.json`, made by `benchmarks/fit_quality.py`): coefficients, spreads, prediction.

`ln rise` is the sum of the features' coefficients (`features`); a feature that the fit never met takes its prior
mean, so an unseen family follows the trend in tokens and size. The 90 % spread is that of cross-validated residuals by how
much the fit knew of the model, and an additive floor covers the noise of measuring perplexity itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from passes.formats.format import Rounding
from planner.quality.features import (
    Features,
    Traits,
    joint_features,
    model_features,
    model_key,
    rounding_features,
)
from planner.quality.traits import nominal
from targets.quantity import Basis, Quantity


@lru_cache(maxsize=1)
def law() -> dict[str, Any]:
    """The fit, parsed."""
    fit: dict[str, Any] = json.loads(files("planner.quality").joinpath("quality_fit.json").read_text())
    return fit


def feature_kind(name: str) -> str:
    """The kind of a feature, which its prior belongs to: `fewer_bits:gptq` is a `fewer_bits:`, `bend` a `bend`."""
    stem, colon, _ = name.partition(":")
    return stem + colon


def _sum(features: Features) -> float:
    coefficients, means = law()["coefficients"], law()["prior_means"]
    total: float = sum(value * coefficients.get(name, means.get(feature_kind(name), 0.0)) for name, value in features)
    return total


@lru_cache(maxsize=1024)
def recognised(traits: Traits) -> Traits:
    """The traits with the size of the fitted model that it is, where it is one."""
    return nominal(traits, tuple(law()["sizes"].get(traits.family, ())))


@lru_cache(maxsize=1024)
def sensitivity(traits: Traits) -> float:
    """ln of the model's own factor (the constant included)."""
    return _sum(model_features(recognised(traits)))


def tier_of(coefficients: Mapping[str, float], families: Container[str], traits: Traits, method: str) -> str:
    """What a fit has seen of a model under a method: this `pair`, the `model` under others, its `family`, or neither (`unseen`)."""
    model = model_key(traits)
    if f"model_method:{model}/{method}" in coefficients:
        return "pair"
    if f"model:{model}" in coefficients:
        return "model"
    return "family" if traits.family in families else "unseen"


@dataclass(frozen=True, slots=True)
class Spread:
    """Half width of the 90 % interval in ln, and what it rests on (`tier_of`)."""

    ln: float
    tier: str


@lru_cache(maxsize=1024)
def spread(traits: Traits, method: str) -> Spread:
    """How far published figures lie from the prediction, by what the fit knew of the model and of the method."""
    fit, known = law(), recognised(traits)
    tier = tier_of(fit["coefficients"], fit["sizes"], known, method)
    width: float = (
        fit["spreads"][tier] * fit["family_spread"].get(known.family, 1.0) * fit["method_spread"].get(method, 1.0)
    )
    if f"method:{method}" not in fit["coefficients"] or method in fit["derived_methods"]:
        width = math.hypot(width, fit["spreads"]["unseen_method"])
    return Spread(width, tier)


@lru_cache(maxsize=1 << 14)
def weight_loss(traits: Traits, rounding: Rounding) -> Quantity:
    """Rise of log-perplexity by storing the decoder's weights as `rounding` says."""
    known = recognised(traits)
    value = math.exp(
        min(
            sensitivity(traits) + _sum(rounding_features(rounding)) + _sum(joint_features(rounding, known)),
            law()["ceiling_ln"],
        )
    )
    return interval(value, spread(traits, rounding.method).ln)


def interval(value: float, ln_spread: float, basis: Basis = Basis.CALIBRATED) -> Quantity:
    """A positive loss with its log-normal 90 % interval, widened by the noise floor of perplexity measurements."""
    floor = law()["floor"]
    return Quantity(value, max(0.0, value * math.exp(-ln_spread) - floor), value * math.exp(ln_spread) + floor, basis)
