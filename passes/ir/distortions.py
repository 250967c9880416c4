"""What passes do to the values of a model, as far as quality depends on it. Which loss follows is known to `planner.quality`."""

from __future__ import annotations

from typing import Literal

from passes.formats.format import Format
from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class WeightRounding:
    """The decoder's quantizable weights are rounded by `method`; `shares`: each format with its share of them, plain numbers left out."""

    method: str
    shares: tuple[tuple[Format, float], ...]


@dataclass(frozen=True, slots=True)
class CacheRounding:
    """Keys and values are kept in `dtype`, by the names of `passes.kv_cache`."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Zeros:
    """A share of the weights is zero: chosen by `method`, in runs of `pattern` (`2:4`) or anywhere (`unstructured`)."""

    method: str
    share: float
    pattern: str


@dataclass(frozen=True, slots=True)
class Removed:
    """A share of the decoder's blocks, of its weights, or of the routed experts of each layer is gone."""

    what: Literal["blocks", "weights", "experts"]
    share: float


@dataclass(frozen=True, slots=True)
class Recovered:
    """The model was trained on so many tokens, which takes back part of what was lost before.

    `method`: `logits` and `sequences` train it whole; `blockwise` tunes each block as it is stored, which takes back part of what
    rounding it loses too. `adapters`: whether low-rank adapters are trained in place of the weights. `of_another`: whether it may learn
    from another model than the source, which takes it away from this by as much as nobody foretells.
    """

    tokens: int
    method: str = "logits"
    adapters: bool = False
    of_another: bool = False


Distortion = WeightRounding | CacheRounding | Zeros | Removed | Recovered
