"""Expected loss of quality of a chain of passes: the rise of log-perplexity and the KL divergence, with intervals.

Weight formats and sparsity follow fits on published tables (`quality_law`, made by `benchmarks/fit_quality.py`); what no table
supports is a stated assumption with a wide interval. Losses of a chain's passes add up: each is small, and the tables that
combine them (50 % SparseGPT with 4 bits; W4A8KV4) agree with the sum within their spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from passes.base import Pass
from passes.ir.model import ModelIR
from planner.quality_features import Scheme, Traits
from planner.quality_law import interval, law, weight_loss
from planner.quality_traits import traits_of
from targets.quantity import Basis, Quantity


@dataclass(frozen=True, slots=True)
class Quality:
    """Rise of log-perplexity (nats a token) and KL divergence from the source (nats a token)."""

    log_ppl_increase: Quantity
    kl: Quantity


def expected_quality(ir: ModelIR, passes: Sequence[Pass]) -> Quality:
    """What a chain applied to the dense model `ir` is expected to cost."""
    traits = traits_of(ir)
    rise = Quantity.exact(0.0)
    for one in passes:
        cost = _LOSS.get(one.name)
        if cost is not None:
            rise = rise + cost(one, traits, ir)
    return Quality(rise, _kl(rise))


def from_sensitivities(losses: Sequence[float], stderr: float) -> Quality:
    """Quality from measured KL of each group of matrices at its option: the sum, with twice its standard error around it."""
    total = math.fsum(losses)
    measured = Quantity(total, max(0.0, total - 2 * stderr), total + 2 * stderr, Basis.MEASURED)
    return Quality(measured, measured)


def _kl(rise: Quantity) -> Quantity:
    """KL from the rise of log-perplexity: the two are nearly equal where the source is well calibrated on the text."""
    fit = law()["kl_ratio"]
    ratio, spread = fit["ratio"], 1 + fit["spread"]
    return Quantity(rise.value * ratio, rise.low * ratio / spread, rise.high * ratio * spread, rise.basis)


def _quantize(one: Pass, traits: Traits, ir: ModelIR) -> Quantity:
    storage, method = getattr(one, "storage", None), str(getattr(one, "method", "rtn"))
    return weight_loss(traits, scheme_of(storage, method)) if storage is not None else Quantity.exact(0.0)


def scheme_of(storage: object, method: str) -> Scheme:
    """What the fit calls a format made by a method."""
    kind = str(getattr(storage, "kind", ""))
    if kind == "float-quantized":
        return Scheme("fp8", 0)
    if kind == "int-quantized":
        return Scheme("w8a8", 0)
    if kind in ("nvfp4", "mxfp4"):
        return Scheme(kind, 0)
    if method in ("exl2", "exl3"):
        return Scheme(method, float(getattr(storage, "bpw", 0) or getattr(storage, "bits", 0)))
    return Scheme(method, float(getattr(storage, "bits", 0)), int(getattr(storage, "group_size", 0)))


#: Load-time formats by the nearest scheme of the fit: nf4 behaves like 4-bit round to nearest with groups of 64.
_AT_LOAD = {"nf4": Scheme("rtn", 4, 64), "int8-bnb": Scheme("w8a8", 0), "fp8-online": Scheme("fp8", 0)}


def _at_load(one: Pass, traits: Traits, ir: ModelIR) -> Quantity:
    return weight_loss(traits, _AT_LOAD[str(one.options()["scheme"])])


def _cache(one: Pass, traits: Traits, ir: ModelIR) -> Quantity:
    dtype = str(one.options()["dtype"])
    if dtype in ("auto", "q8"):
        return Quantity.exact(0.0) if dtype == "auto" else Quantity(0.0005, 0.0, 0.003, Basis.ASSUMED)
    if dtype in ("q4", "fp8_e5m2"):
        fitted = law()["kv"][dtype]
        return interval(math.exp(fitted["ln"]) / 100, fitted["spread"])
    # e4m3 and 6 bits: within the noise of the tables that hold them, never better than nothing.
    return Quantity(0.002, 0.0, 0.01, Basis.ASSUMED)


def _sparse(one: Pass, traits: Traits, ir: ModelIR) -> Quantity:
    fit = law()["sparsity"]
    options, c = one.options(), fit["coefficients"]
    pattern = {"unstructured": "50%"}.get(str(options["pattern"]), str(options["pattern"]))
    ln = c["constant"] + c["log_size"] * math.log(traits.size_b / 7) + c["log_tokens"] * math.log(traits.tokens_t / 2)
    ln += c.get(f"method:{options['method']}", 0.0) + c.get(f"pattern:{pattern}", 0.0)
    # The tables stand at 50 %; the loss vanishes with the sparsity and grows steeply above.
    ln += 4 * math.log(max(float(options["sparsity"]), 0.01) / 0.5)
    return interval(math.exp(ln), fit["spread"])


def _removed(share: float) -> Quantity:
    """Structural removal without recovery: ShortGPT (arXiv 2403.03853) prints ln 8.0 -> ~14.9 for 27 % of the layers; quadratic."""
    return interval(8.5 * share * share + 1.2 * share, 0.8, Basis.ASSUMED)


def _depth(one: Pass, traits: Traits, ir: ModelIR) -> Quantity:
    return _removed(float(one.options()["count"]) / max(1, len(ir.decoder.layers)))


def _width(one: Pass, traits: Traits, ir: ModelIR) -> Quantity:
    return _removed(1 - one.rewrite(ir).weights / ir.weights)


_LOSS: dict[str, Callable[[Pass, Traits, ModelIR], Quantity]] = {
    "quantize": _quantize, "quantize_exl2": _quantize, "quantize_at_load": _at_load, "kv_cache": _cache, "prune_sparse": _sparse,
    "prune_depth": _depth, "prune_width": _width, "prune_experts": _width,
}  # fmt: skip
