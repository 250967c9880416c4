"""The fitted law of loss (`quality_fit.json`, made by `benchmarks/fit_quality.py`): coefficients, prediction, interval.

`ln rise` is the sum of coefficients times amounts (`features`). The 90 % interval is as wide as residuals of tables that were held out
whole, by kind of loss and by what the fit knew of the model; what it knows of a single model moves that model's interval, never its value,
because values of a family keep the order of sizes. So do upper ends, but for such models, and they keep that of methods. An additive floor
covers the noise of measuring perplexity itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.formats.format import Rounding
from planner.quality.features import NEAREST, Cause, Traits, features, kind, model_key, no_worse, scheme
from planner.quality.traits import nominal
from targets.quantity import Basis, Quantity

Law = dict[str, float]
#: Kinds of features whose coefficients may be negative.
FREE = frozenset(
    {
        "kind:",
        "log_tokens",
        "tuned",
        "family:",
        "family_outliers:",
        "family_zeros:",
        "family_cache:",
        "method:",
        "cache:",
    }
)


@lru_cache(maxsize=1)
def law() -> dict[str, Any]:
    """Return the fit, parsed."""
    fit: dict[str, Any] = json.loads(Path(__file__).with_name("quality_fit.json").read_text())
    return fit


def feature_kind(name: str) -> str:
    """Return the kind of a feature, which its prior belongs to: `smaller:4-10` is a `smaller:`, `bend` a `bend`."""
    stem, colon, _ = general(name).partition(":")
    return stem + colon


def general(name: str) -> str:
    """Return the general feature that a family's or a method's own one stands for: `rtn|bend` is a `bend`."""
    return name.rpartition("|")[2]


def ln_rise(coefficients: Mapping[str, float], cause: Cause, traits: Traits) -> float:
    """Return the logarithm of the rise of log-perplexity in nats a token; what the fit never met takes the general coefficient, or none."""
    return sum(
        amount * coefficients.get(name, coefficients.get(general(name), 0.0))
        for name, amount in features(cause, traits)
    )


def tier_of(seen: Mapping[str, Mapping[str, Sequence[str]]], cause: Cause, traits: Traits) -> str:
    """Return what a fit has seen of a model: this rounding of it (`pair`), the `model` otherwise, its `family`, or neither (`unseen`).

    `seen`: by family, then by size, the schemes of its rows.
    """
    sizes = seen.get(traits.family)
    if sizes is None:
        return "unseen"
    schemes = sizes.get(f"{traits.size_b:g}")
    if schemes is None:
        return "family"
    return "pair" if isinstance(cause, Rounding) and scheme(cause) in schemes else "model"


def half_width(widths: Mapping[str, Mapping[str, float]], cause: Cause, traits: Traits, tier: str) -> float:
    """Return half of the 90 % interval in ln, by kind of loss, what the fit knew of a model, how far tables of its family lie apart: the
    same for all sizes of a family, whose upper ends are in their order by that.
    """
    of_kind = widths["kind"].get(kind(cause), max(widths["kind"].values()))
    return of_kind * widths["tier"][tier] * widths["family"].get(traits.family, 1.0)


def size_band(traits: Traits) -> str:
    """Return the range of sizes, in 10^9 weights, that the coverage of intervals is told by."""
    return next(name for below, name in _BANDS if traits.size_b < below)


@lru_cache(maxsize=1 << 14)
def loss(traits: Traits, cause: Cause) -> Quantity:
    """Return the rise of log-perplexity, nats a token, by one cause."""
    fit = law()
    known = nominal(traits, tuple(map(float, fit["seen"].get(traits.family, ()))))
    value = math.exp(min(ln_rise(fit["coefficients"], cause, known), fit["ceiling_ln"]))
    half = half_width(fit["widths"], cause, known, tier_of(fit["seen"], cause, known))
    if scheme(cause) not in fit["schemes"]:
        half = math.hypot(half, _NO_TABLE)
    if not isinstance(cause, Rounding):
        return interval(value, half)
    deviation = fit["models"].get(model_key(known), 0.0) if cause.bits else 0.0
    upper = _upper(value * math.exp(half), max(0.0, deviation), cause, known)
    found = interval(value, half, least=min(0.0, deviation), most=math.log(upper / value) - half)
    # A grid that is no coarser than the one that the weights were on before may hold them as they are.
    return replace(found, low=0.0) if 0 < traits.rounded_bits <= cause.bits + _GRIDS_MEET else found


def _upper(upper: float, deviation: float, cause: Rounding, traits: Traits) -> float:
    """The upper end of a loss, without the noise of measuring: no higher than that of what loses no less, the same rounding of the smaller
    models of the family that tables hold, and plain rounding where the method calibrates. `deviation`: the model's own, in ln, upwards.
    """
    floor, seen = law()["floor"], law()["seen"].get(traits.family, {})
    for size, schemes in seen.items():
        if float(size) < traits.size_b and scheme(cause) in schemes:
            upper = min(upper, loss(replace(traits, size_b=float(size)), cause).high - floor)
    upper *= math.exp(deviation)
    if cause.method != NEAREST and no_worse(cause.method, NEAREST):
        upper = min(upper, loss(traits, replace(cause, method=NEAREST)).high - floor)
    return upper


#: Sizes in 10^9 weights below which a range ends, and its name.
_BANDS = ((1.0, "0.1–1 B"), (4.0, "1–4 B"), (20.0, "4–20 B"), (math.inf, "20–405 B"))
#: Half width in ln that is added for a scheme that no table holds; by how many bits two grids may differ that hold the same values.
_NO_TABLE, _GRIDS_MEET = 0.9, 0.75


def interval(
    value: float, half: float, *, least: float = 0.0, most: float = 0.0, basis: Basis = Basis.CALIBRATED
) -> Quantity:
    """Return a positive loss with its log-normal 90 % interval, widened by the noise floor of perplexity measurements.

    `least`, `most`: how far, in ln, its ends lie beyond those around the value.
    """
    floor = law()["floor"]
    return Quantity(
        value, max(0.0, value * math.exp(least - half) - floor), value * math.exp(most + half) + floor, basis
    )
