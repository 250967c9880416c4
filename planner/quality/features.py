"""What the law of quality sees of a model and of what is done to it: named amounts, the same for fitting and for predicting.

The rise of log-perplexity is modelled as a product, so its logarithm is a sum of coefficients times amounts:

    ln rise  =  free terms (kind of loss, training tokens, family, method)  +  Σ coefficient · amount,   each coefficient ≥ 0

The second part keeps orders whatever the fit finds, because its amounts only grow as things get worse: as a model gets smaller, as bits
fall, as groups get coarser, as more is dropped, as a method leaves out what a better one does (`quality_methods.json`).

* Distortion of a uniform quantizer falls by 4 a bit (its step halves, the squared error quarters); methods may deviate. The squared step
  of a group grows with the expected range of its weights, which for Gaussian weights follows from the order statistics of
  `group_size` samples (Blom's approximation). Below 3 bits the loss bends upwards.
* Sensitivity of weights grows with training tokens and falls with size (Kumar et al. 2024, "Scaling laws for precision", arXiv 2411.04330).
  What rounding inputs costs depends on outliers of the activations instead: it has family effects and a slope in size of its own.
* `FAMILY|term` is a family's own coefficient of a term, `METHOD|term` a method's: shrunk towards the general one, which stands for it
  where nothing is known. So no model's figures reach another family, or a larger model as a loss that grows.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

from passes.formats.format import Rounding
from passes.ir.distortions import CacheRounding, Removed, Zeros
from passes.record import dataclass

Features = tuple[tuple[str, float], ...]
#: What one coefficient table tells the loss of.
Cause = Rounding | Zeros | Removed | CacheRounding

#: The method that neither calibrates nor makes up for what it rounds.
NEAREST = "rtn"
_REFERENCE_BITS = 4.0
_BEND_BITS = 3.0
_REFERENCE_GROUP = 128
#: Inputs of a row of usual matrices: a scale a row is a group of so many.
_ROW = 4096
#: No matrix has a longer row: a larger group is what this one is.
_LONGEST_ROW = 1 << 24
#: 10^9 weights between which the slope in size may change, and the size from which kinds of loss with a single slope count down.
SIZES = (0.1, 0.5, 1.5, 4.0, 10.0, 30.0, 100.0, 500.0)
_LARGEST = 1000.0

#: Kinds of what is taken away.
_REMOVED = {"blocks": "depth", "weights": "width", "experts": "experts"}


@lru_cache(maxsize=1)
def methods() -> dict[str, Any]:
    """Return the table of methods and formats (`quality_methods.json`)."""
    table: dict[str, Any] = json.loads(Path(__file__).with_name("quality_methods.json").read_text())
    return table


def _beyond(name: str) -> tuple[str, ...]:
    """What a method has in common with better ones, then what it loses beyond them; one that is not known stands alone."""
    return tuple(methods()["beyond"].get(name, (name,)))


def no_worse(method: str, than: str) -> bool:
    """Tell whether a method loses no more than another by construction: the other leaves out something that it does."""
    return set(_beyond(method)) <= set(_beyond(than))


def _outlier_kind(method: str) -> str | None:
    kind: str | None = methods()["outliers"].get(method)
    return kind


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of a model's sensitivity: its family, its size in 10^9 weights, its training tokens in 10^12.

    `tuned`: an instruct or chat model, whose perplexity on plain text has room that the base model's has not.
    `rounded_bits`: bits a weight that the source was stored in before (a dequantized GGUF); 0 where it was not.
    """

    family: str
    size_b: float
    tokens_t: float
    tuned: bool = False
    rounded_bits: float = 0.0


def scheme(cause: Cause) -> str:
    """Return what a table's rows have in common that teach the same loss: method, pattern of zeros, what is gone, type of the cache."""
    match cause:
        case Rounding():
            return cause.method
        case Zeros():
            return cause.pattern
        case Removed():
            return _REMOVED[cause.what]
        case CacheRounding():
            return f"cache:{cause.dtype}"


def model_key(traits: Traits) -> str:
    """Return the key of a model's own deviation: family and size to two digits."""
    return f"{traits.family}/{traits.size_b:.2g}"


@lru_cache(maxsize=256)
def group_range(group_size: int) -> float:
    """Return ln of the expected squared range of `group_size` Gaussian weights against that of 128; one weight counts as two."""

    def spread(n: int) -> float:
        return -NormalDist().inv_cdf(0.625 / (n + 0.25))

    return 2 * math.log(spread(min(max(group_size, 2), _LONGEST_ROW)) / spread(_REFERENCE_GROUP))


def kind(cause: Cause) -> str:
    """Return the kind of a loss, whose spread it shares: few bits, inputs rounded, zeros, … Tables of zeros without a pattern, and of
    rounding to nearest, lie further apart than others of theirs.
    """
    match cause:
        case Rounding(method=method, bits=bits):
            if (of_outliers := _outlier_kind(method)) is not None:
                return of_outliers
            if method in methods()["four_bit_floats"]:
                return "fp4"
            if bits < _BEND_BITS:
                return "few bits"
            return "integers to nearest" if method == "rtn" else "integers"
        case Zeros(pattern=pattern):
            return "zeros" if pattern == "unstructured" else "zeros in patterns"
        case Removed(what=what):
            return _REMOVED[what]
        case CacheRounding():
            return "cache"


@lru_cache(maxsize=1 << 14)
def features(cause: Cause, traits: Traits) -> Features:
    """Return all amounts of a cause of loss in a model."""
    match cause:
        case Rounding(method=method) if _outlier_kind(method) is not None:
            return (*_of_outliers(traits), *_method(cause, traits))
        case Rounding():
            return (*_of_weights(traits), *_method(cause, traits), *_bits(cause))
        case Zeros():
            return (*_shared("zeros", traits), *_zeros(cause))
        case Removed(share=share):
            what = kind(cause)
            return (
                (f"kind:{what}", 1.0),
                (f"smaller:{what}", _smallness(traits)),
                (f"share:{what}", math.log(max(share, 1e-4) / 0.1)),
            )
        case CacheRounding(dtype=dtype):
            return (*_shared("cache", traits), (f"cache:{dtype}", 1.0))


def _smallness(traits: Traits) -> float:
    return max(0.0, math.log(_LARGEST / traits.size_b))


@lru_cache(maxsize=1024)
def _of_weights(traits: Traits) -> Features:
    """Sensitivity of a model to rounding its weights."""
    return (
        ("kind:weights", 1.0),
        ("log_tokens", math.log(traits.tokens_t / 2)),
        ("tuned", float(traits.tuned)),
        (f"family:{traits.family}", 1.0),
        *(
            (f"{traits.family}|smaller:{low:g}-{high:g}", math.log(high / min(max(traits.size_b, low), high)))
            for low, high in pairwise(SIZES)
        ),
    )


def _of_outliers(traits: Traits) -> Features:
    return (("kind:outliers", 1.0), (f"family_outliers:{traits.family}", 1.0))


def _shared(what: str, traits: Traits) -> Features:
    """Sensitivity of a model to another kind of loss that grows with training."""
    return (
        (f"kind:{what}", 1.0),
        ("log_tokens", math.log(traits.tokens_t / 2)),
        (f"family_{what}:{traits.family}", 1.0),
        (f"{traits.family}|smaller:{what}", _smallness(traits)),
    )


def _method(rounding: Rounding, traits: Traits) -> Features:
    """What the method has in common with better ones, and what it loses beyond them; for formats that round inputs, by size."""
    root, *beyond = _beyond(rounding.method)
    found = [(f"method:{root}", 1.0), *((f"{traits.family}|beyond:{name}", 1.0) for name in beyond)]
    if _outlier_kind(rounding.method) is not None:
        found.append((f"smaller:{root}", _smallness(traits)))
    return tuple(found)


def _bits(rounding: Rounding) -> Features:
    if not rounding.bits:
        return ()
    root, *beyond = _beyond(rounding.method)
    few, bend = max(0.0, _REFERENCE_BITS - rounding.bits), max(0.0, _BEND_BITS - rounding.bits)
    found = [(f"{root}|fewer_bits", _REFERENCE_BITS - rounding.bits)]
    found += [(f"{root}|bend", bend), *((f"bend:{name}", bend) for name in beyond)]
    found += [("few_bits:rtn", few)] if rounding.method == "rtn" else []
    if rounding.group_size < 0:
        found += [("group", group_range(_ROW)), ("row", 1.0), ("few_bits:row", few)]
        found += [("row:rtn", 1.0), ("few_bits:row:rtn", few)] if rounding.method == "rtn" else []
    elif rounding.group_size > 0:
        found.append(("group", group_range(rounding.group_size)))
    return tuple(found)


def _zeros(zeros: Zeros) -> Features:
    """Its share, and what method and pattern lose beyond better ones; a run longer than four leaves as much choice as 4:8."""
    run = int(zeros.pattern.partition(":")[2] or 0)
    pattern = "unstructured" if not run else "2:4" if run <= 4 else "4:8"
    beyond = (*_beyond(pattern), *_beyond(zeros.method))
    return (("share:zeros", math.log(max(zeros.share, 0.01) / 0.5)), *((f"beyond:{name}", 1.0) for name in beyond))
