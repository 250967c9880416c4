"""The fitted law of loss (`quality_fit.json`, made by `benchmarks/fit_quality.py`): coefficients, prediction, interval.

`ln rise` is the sum of coefficients times amounts (`features`). The 90 % interval is as wide as residuals of tables that were held out
whole, by kind of loss and by what the fit knew of the model; what it knows of a single model moves that model's interval, never its value,
because values of a family keep the order of sizes. So do upper ends, but for such models, and they keep that of methods. An additive floor
covers the noise of measuring perplexity itself.

Of zeros the sum is ln of a damage that the rise grows by less and less: half of the weights gone without a pattern raise log-perplexity by
0.02 to 0.74 in tables, and 2:4 by 5.5 times as much of the small rises, 1.8 times of the large ones. As a damage 2:4 is 3 to 5 times as
much of all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from passes.formats.format import Rounding
from passes.ir.distortions import Zeros
from planner.quality.features import SIZES, Cause, Traits, beaten, features, kind, model_key, scheme
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


#: The rise, in nats, about which that of zeros bends from in proportion to their damage to the logarithm of it.
_BEND = 0.5


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


def ln_damage(coefficients: Mapping[str, float], cause: Cause, traits: Traits) -> float:
    """Return the sum, ln of nats a token, that a rise is told of (`rise_of`); what the fit never met takes the general figure, or none."""
    return sum(
        amount * coefficients.get(name, coefficients.get(general(name), 0.0))
        for name, amount in features(cause, traits)
    )


def rise_of(cause: Cause, ln: float) -> float:
    """Return the rise of log-perplexity in nats a token of ln of a damage: the damage itself, but of zeros."""
    damage = math.exp(ln)
    return _BEND * math.log1p(damage / _BEND) if isinstance(cause, Zeros) else damage


def ln_damage_of(cause: Cause, rise: float) -> float:
    """Return ln of the damage, in nats a token, that a rise tells of: what `rise_of` undoes."""
    return math.log(_BEND * math.expm1(rise / _BEND) if isinstance(cause, Zeros) else rise)


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
    """Return half of the 90 % interval in ln, by kind of loss, what the fit knew of a model, how far tables of its family lie apart, and
    its size.
    """
    of_kind = widths["kind"].get(kind(cause), max(widths["kind"].values()))
    of_family = widths["family"].get(spread_of(cause, traits), 1.0)
    return of_kind * widths["tier"][tier] * of_family * of_size(widths[sizes_of(cause)], traits.size_b)


def sizes_of(cause: Cause) -> str:
    """Return the name of the factors by size that a width takes: zeros, whose tables disagree most about large models, have their own."""
    return "size of zeros" if isinstance(cause, Zeros) else "size"


def of_size(factors: Mapping[str, float], size_b: float) -> float:
    """Return the factor on a width at a size: those of the middles of the ranges of size, by its logarithm between them."""
    middles = sorted(map(float, factors))
    found = factors[f"{middles[0]:g}"]
    for low, high in pairwise(middles):
        part = min(max(math.log(size_b / low) / math.log(high / low), 0.0), 1.0)
        found += part * (factors[f"{high:g}"] - factors[f"{low:g}"])
    return found


def spread_of(cause: Cause, traits: Traits) -> str:
    """Return whose tables' spread a width is of: the family's; zeros', of which few families have more than one, are all alike."""
    return "" if isinstance(cause, Zeros) else traits.family


def size_band(traits: Traits) -> str:
    """Return the range of sizes, in 10^9 weights, that the coverage of intervals is told by."""
    return next(name for below, name, _ in _BANDS if traits.size_b < below)


def middle(traits: Traits) -> str:
    """Return the middle of the range of sizes that a model is in, by which widths know it."""
    return next(f"{size:g}" for below, _, size in _BANDS if traits.size_b < below)


@lru_cache(maxsize=1 << 14)
def loss(traits: Traits, cause: Cause) -> Quantity:
    """Return the rise of log-perplexity, nats a token, by one cause."""
    fit = law()
    known = nominal(traits, tuple(map(float, fit["seen"].get(traits.family, ()))))
    ln, half = _predicted(cause, known)
    # Widths may grow with size faster than values fall: an upper end is none of a larger model's only.
    smaller = (replace(known, size_b=size) for size in _TURNS if size < known.size_b)
    most = min((ln + half, *(sum(_predicted(cause, each)) for each in smaller)))
    low, value, upper = (rise_of(cause, end) for end in (ln - half, ln, most))
    if not isinstance(cause, Rounding):
        return _measured(low, value, upper)
    deviation = fit["models"].get(model_key(known), 0.0) if cause.bits else 0.0
    upper = _upper(upper, max(0.0, deviation), cause, known)
    found = _measured(low * math.exp(min(0.0, deviation)), value, upper)
    # A grid that is no coarser than the one that the weights were on before may hold them as they are.
    return replace(found, low=0.0) if 0 < traits.rounded_bits <= cause.bits + _GRIDS_MEET else found


def _predicted(cause: Cause, traits: Traits) -> tuple[float, float]:
    """Ln of a damage, no more than anything does, and half of its interval."""
    fit = law()
    ln = min(ln_damage(fit["coefficients"], cause, traits), ln_damage_of(cause, math.exp(fit["ceiling_ln"])))
    half = half_width(fit["widths"], cause, traits, tier_of(fit["seen"], cause, traits))
    return ln, half if scheme(cause) in fit["schemes"] else math.hypot(half, _NO_TABLE)


def _upper(upper: float, deviation: float, cause: Rounding, traits: Traits) -> float:
    """The upper end of a loss, without the noise of measuring: no higher than that of what loses no less, the same rounding of the smaller
    models of the family that tables hold, and by the methods that it is no worse than. `deviation`: the model's own, in ln, upwards.
    """
    floor: float = law()["floor"]
    seen = law()["seen"].get(traits.family, {})
    for size, schemes in seen.items():
        if float(size) < traits.size_b and scheme(cause) in schemes:
            upper = min(upper, loss(replace(traits, size_b=float(size)), cause).high - floor)
    upper *= math.exp(deviation)
    worse = (loss(traits, replace(cause, method=method)).high - floor for method in beaten(cause.method))
    return min(upper, min(worse, default=math.inf))


#: Sizes in 10^9 weights below which a range ends, its name, and its middle, which is a size where slopes in size change too.
_BANDS = ((1.0, "0.1–1 B", 0.5), (4.0, "1–4 B", 1.5), (20.0, "4–20 B", 10.0), (math.inf, "20–405 B", 100.0))
#: Sizes where ln of an upper end, which is straight in ln of the size between them, may turn upwards.
_TURNS = tuple(size for size in SIZES if _BANDS[0][2] <= size <= _BANDS[-1][2])
#: Half width in ln that is added for a scheme that no table holds; by how many bits two grids may differ that hold the same values.
_NO_TABLE, _GRIDS_MEET = 0.9, 0.75


def _measured(low: float, value: float, high: float) -> Quantity:
    """A loss with its 90 % interval, widened by the noise of measuring perplexities."""
    floor = law()["floor"]
    return Quantity(value, max(0.0, low - floor), high + floor, Basis.CALIBRATED)
