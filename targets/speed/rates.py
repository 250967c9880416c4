"""Efficiencies by engine and generation of cards, read from `speed_fit.json` (made by `benchmarks/fit_speed.py`).

A generation without data of its own takes the shared values of its engine, which the fit shrinks every generation towards; an
engine without data takes another's. Both widen the interval and turn the basis to `assumed`, as do more clients than any row of the
generation had, and experts where none of its rows has some.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from targets.quantity import Basis
from targets.speed.kernels import FAMILIES
from targets.speed.step import Rates

FIT = Path(__file__).with_name("speed_fit.json")


@dataclass(frozen=True, slots=True)
class Fitted:
    """Rates with what is known of their error: relative 90 % half widths in log space by figure, and the basis."""

    rates: Rates
    decode_error: float
    prefill_error: float
    ttft_error: float
    tpot_error: float
    basis: Basis


@cache
def fit() -> Mapping[str, Any]:
    """The fitted constants, as stored."""
    stored: Mapping[str, Any] = json.loads(FIT.read_text())
    return stored


def engine_values(engine: str) -> Mapping[str, float]:
    """The named constants of an engine; those of the engine it is read as, where it has none."""
    entry = fit()["engines"][engine]
    values: Mapping[str, float] = fit()["engines"][entry.get("as", engine)]["values"]
    return values


@lru_cache(maxsize=256)
def fitted_rates(
    engine: str, generation: str, version: str | None = None, *, clients: float = 1, experts: bool = False
) -> Fitted:
    """What the fit says of an engine (and version of it; None = newest) on a generation of cards, for so many clients of a model with

    or without experts.
    """
    entry = fit()["engines"][engine]
    seen = entry.get("generations", {}).get(generation, {"clients": 0, "experts": False})
    known = clients <= seen["clients"] and (seen["experts"] or not experts)
    values = _within_the_card(rates_from(engine_values(engine), generation, version))
    errors = entry["errors"]
    widen = 1.0 if known else entry["unknown_generation_widens"]
    basis = Basis.CALIBRATED if known and "as" not in entry else Basis.ASSUMED
    return Fitted(
        values,
        widen * errors["decode"],
        widen * errors["prefill"],
        widen * errors["ttft"],
        widen * errors["tpot"],
        basis,
    )


def _within_the_card(rates: Rates) -> Rates:
    """No kernel is faster than the card's rate that it is a share of. A machine's own probe is no such bound."""
    memory, compute = (
        {family: min(1.0, share) for family, share in asked.items()} for asked in (rates.memory, rates.compute)
    )
    return replace(rates, memory=memory, compute=compute)


def rates_from(values: Mapping[str, float], generation: str, version: str | None = None) -> Rates:
    """Rates from named constants: shared values times the generation's factors (`memory@9.0`), overheads by version.

    `memory`, `memory.FAMILY`: fraction of bandwidth and the family's factor on it; `compute` likewise. `drift`: growth of all
    overheads a minor version before `newest`, at most `drift_span` versions back (older ones were not fitted).
    """

    def at(name: str) -> float:
        return values[name] * values.get(f"{name}@{generation}", 1.0)

    memory, compute, layer = at("memory"), at("compute"), at("layer_s")
    behind = min(max(values["newest"] - _minor(version), 0.0), values["drift_span"]) if version else 0.0
    slower = values["drift"] ** behind
    return Rates(
        memory={family: memory * values.get(f"memory.{family}", 1.0) for family in FAMILIES},
        compute={family: compute * values.get(f"compute.{family}", 1.0) for family in FAMILIES},
        expert_memory=at("expert_memory"),
        expert_compute=at("expert_compute"),
        cache=at("cache"),
        attention=at("attention"),
        layer_s=layer * slower,
        expert_layer_s=values["expert_layer_s"] * slower,
        kernel_layer_s={family: values.get(f"kernel_layer_s.{family}", 0.0) * slower for family in FAMILIES},
        step_s=at("step_s") * slower,
        sequence_s=values["sequence_s"] * slower,
        token_s=values["token_s"] * slower,
        link_s=values["link_s"],
        link=values["link"],
        tile=values["tile"],
        routing=values["routing"],
        host_s=values["host_s"] * slower,
        host_token_s=values["host_token_s"],
        occupancy=values["occupancy"],
    )


def _minor(version: str) -> float:
    """The minor number of a 0.x version; a 1.x counts as newer than all of them."""
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    return float(minor) if major == "0" and minor.isdigit() else 1000.0
