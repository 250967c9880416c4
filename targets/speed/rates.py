"""Efficiencies by engine and generation of cards, read from `speed_fit.json` (made by `benchmarks/fit_speed.py`).

A generation without data of its own takes the shared values of its engine, which the fit shrinks every generation towards; an
engine without data takes another's. Both widen the interval and turn the basis to `assumed`, as do more clients than any row of the
generation had, and experts where none of its rows has some. Widths come from sources that were left out whole, apart for each regime of
load and for models with experts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from passes.record import dataclass
from targets.quantity import Basis
from targets.speed.kernels import FAMILIES
from targets.speed.step import Link, Rates

#: What the rows hold of a generation that has none.
_NOTHING: Mapping[str, int] = {"clients": 0, "experts": False, "stages": 1}

FIT = Path(__file__).with_name("speed_fit.json")


class Regime(StrEnum):
    """How an engine is loaded, as far as errors differ by it."""

    ALONE = "alone"
    """One request at a time."""
    BELOW = "below"
    """Several at once, whose cache fits."""
    SATURATED = "saturated"
    """More than the cache or the engine's own limit holds: some wait."""
    BURST = "burst"
    """All at once, far more than a step takes."""


@dataclass(frozen=True, slots=True)
class Width:
    """Relative 90 % half widths in log space: of the time between tokens and to the first one. Of a request that waits for no other, what
    delays a first token on the host is the same for any prompt: `prompt` is the width of the rest, `host_s` the 90 % of that, both ways.
    """

    tpot: float
    ttft: float
    prompt: float = math.inf
    host_s: float = 0.0

    def first(self, seconds: float) -> float:
        """Return the width of so long a time to the first token: of a long one, that of computing its prompt."""
        if not math.isfinite(self.prompt):
            return self.ttft
        return min(self.ttft, math.log(math.exp(self.prompt) + self.host_s / max(seconds, 1e-9)))

    def times(self, factor: float) -> Width:
        """Return the widths so many times as wide."""
        return replace(self, tpot=factor * self.tpot, ttft=factor * self.ttft, prompt=factor * self.prompt)

    def with_own(self, own: float) -> Width:
        """Return the widths with an independent error besides."""
        return replace(
            self,
            tpot=math.hypot(self.tpot, own),
            ttft=math.hypot(self.ttft, own),
            prompt=math.hypot(self.prompt, own),
        )


@dataclass(frozen=True, slots=True)
class Fitted:
    """Rates with what is known of their error, by regime, and the basis."""

    rates: Rates
    widths: Mapping[Regime, Width]
    basis: Basis


@cache
def fit() -> Mapping[str, Any]:
    """Return the fitted constants, as stored."""
    stored: Mapping[str, Any] = json.loads(FIT.read_text())
    return stored


def is_fitted(engine: str) -> bool:
    """Return whether constants of an engine are fitted; those of other packages' engines are not."""
    return engine in fit()["engines"]


def engine_values(engine: str) -> Mapping[str, float]:
    """Return the named constants of an engine; those of the engine it is read as, where it has none."""
    entry = fit()["engines"][engine]
    values: Mapping[str, float] = fit()["engines"][entry.get("as", engine)]["values"]
    return values


@lru_cache(maxsize=256)
def fitted_rates(
    engine: str,
    generation: str,
    version: str | None = None,
    *,
    clients: float = 1,
    experts: bool = False,
    stages: float = 1,
) -> Fitted:
    """Return what the fit says of an engine (and version of it; None = newest) on a generation of cards, for so many clients of a model
    with or without experts, in so many pipeline stages: infinitely many where it is spread as no row of it is.
    """
    entry = fit()["engines"][engine]
    seen = entry.get("generations", {}).get(generation, _NOTHING)
    known = clients <= seen["clients"] and (seen["experts"] or not experts) and stages <= seen["stages"]
    values = _within_the_card(rates_from(engine_values(engine), generation, version))
    widen = 1.0 if known else entry["unknown_generation_widens"]
    widths = {
        Regime(regime): Width(**width).times(widen)
        for regime, width in entry["widths"]["experts" if experts else "dense"].items()
    }
    return Fitted(values, widths, Basis.CALIBRATED if known and "as" not in entry else Basis.ASSUMED)


def eager(fitted: Fitted, engine: str) -> Fitted:
    """Return rates without CUDA graphs: batches are not padded, each kernel is launched by itself. Assumed, as no fit holds such rows."""
    values, entry = engine_values(engine), fit()["engines"][engine]
    rates = replace(fitted.rates, graphs=0, launch_layer_s=values.get("launch_layer_s", 0.0))
    widen = entry["unknown_generation_widens"] if rates.eager and fitted.basis is Basis.CALIBRATED else 1.0
    widths = {regime: width.times(widen) for regime, width in fitted.widths.items()}
    return Fitted(rates, widths, Basis.ASSUMED if rates.eager else fitted.basis)


def _within_the_card(rates: Rates) -> Rates:
    """No kernel is faster than the card's rate that it is a share of. A machine's own probe is no such bound."""

    def bounded(asked: Mapping[str, float]) -> dict[str, float]:
        return {family: min(1.0, share) for family, share in asked.items()}

    return replace(
        rates, memory=bounded(rates.memory), compute=bounded(rates.compute),
        expert_memory=bounded(rates.expert_memory), expert_compute=bounded(rates.expert_compute),
    )  # fmt: skip


def rates_from(values: Mapping[str, float], generation: str, version: str | None = None) -> Rates:
    """Make rates from named constants: shared values times the factors of each word of the generation (`memory@12`, `layer_s@geforce`).

    `memory`, `memory.FAMILY`: fraction of bandwidth and the family's factor on it; `compute`, `expert_memory`, `expert_compute` and `tile`
    likewise. By version: `drift`, growth of all overheads a minor version before `newest`, at most `drift_span` versions back (older ones
    were not fitted); `compute_drift`, `expert_drift`, the same of matrix rates and of FP8 experts; `synchronous`, what composing a step
    takes more where it waits for the one before.
    """

    def at(name: str, family: str = "") -> float:
        value = values[name] * values.get(f"{name}.{family}", 1.0)
        for part in generation.split():
            value *= values.get(f"{name}@{part}", 1.0)
        return value

    def by_family(name: str, slower: float = 1.0) -> dict[str, float]:
        return {family: at(name, family) / slower for family in FAMILIES}

    behind = min(max(values["newest"] - _minor(version), 0.0), values["drift_span"]) if version else 0.0
    slower = values["drift"] ** behind
    memory, compute = by_family("memory"), by_family("compute", values["compute_drift"] ** behind)
    expert = {family: values["expert_drift"] ** behind if family == "fp8" else 1.0 for family in FAMILIES}
    expert_memory, expert_compute = by_family("expert_memory"), by_family("expert_compute")
    composing = slower * (values["synchronous"] if behind > values["newest"] - ASYNCHRONOUS else 1.0)
    return Rates(
        memory=memory,
        compute=compute,
        expert_memory={family: memory[family] * expert_memory[family] / expert[family] for family in FAMILIES},
        expert_compute={family: compute[family] * expert_compute[family] / expert[family] for family in FAMILIES},
        cache=min(at("cache"), 1.0),
        attention=at("attention"),
        layer_s=at("layer_s") * slower,
        expert_layer_s=at("expert_layer_s") * slower,
        recurrent_layer_s=values["recurrent_layer_s"] * slower,
        kernel_layer_s={family: values.get(f"kernel_layer_s.{family}", 0.0) * slower for family in FAMILIES},
        step_s=at("step_s") * composing,
        sequence_s=values["sequence_s"] * composing,
        token_s=values["token_s"] * slower,
        links=_links(values),
        tile=by_family("tile"),
        routing=values["routing"],
        recurrence=values["recurrence"],
        host_s=values["host_s"],
        host_token_s=values["host_token_s"],
        occupancy=values["occupancy"],
        graphs=int(values["graphs"]),
        serial_s=values["serial_s"],
        template_s=values.get("template_s", 0.0) if version in PARSES_TEMPLATES else 0.0,
        workers_s=values["workers_s"],
        first_use_s=values["first_use_s"] if version is None or _minor(version) < WARMED else 0.0,
        sparse_whole=version is not None and _minor(version) < LENGTHS,
    )


#: The first version that composes a step while the last one runs.
ASYNCHRONOUS = 14.0

#: The first version in which a published run of a model with recurrent layers shows no compilation at its first prompts (0.20.0; which one
#: began to compile them at the start is not known).
WARMED = 20.0


#: Versions that parse a chat's template anew for each request to find what it names (`resolve_chat_template_kwargs` in
#: `entrypoints/chat_utils.py`; 0.10.2 has no such step, 0.12.0 keeps the answer).
PARSES_TEMPLATES = ("0.11.0", "0.11")
#: Whose chats are written without a template (`entrypoints/harmony_utils.py`).
_HARMONY = "GptOssForCausalLM"


def with_templates(rates: Rates, architecture: str) -> Rates:
    """Return the rates of a server that is asked chats: its one thread parses the model's template for each, where the version does."""
    if not rates.template_s or architecture == _HARMONY:
        return rates
    return replace(rates, serial_s=rates.serial_s + rates.template_s, template_s=0.0)


#: A version that tells the kernel of sparse attention how many tokens were chosen (`topk_length`, read in 0.32; 0.11 to 0.18 do not).
LENGTHS = 32.0


def _links(values: Mapping[str, float]) -> dict[str, Link]:
    """Links by kind (`targets.speed.card.wiring_of`): what goes through the host's memory takes `staged_s` more than over the bus."""
    fixed, hop, share = values["pcie_s"], values["pcie_hop_s"], values["pcie"]
    return {
        "nvlink": Link(values["link_s"], 0.0, values["link"]),
        "pcie": Link(fixed, hop, share),
        "staged": Link(fixed + values["staged_s"], hop, share),
    }


def _minor(version: str) -> float:
    """The minor number of a 0.x version; a 1.x counts as newer than all of them."""
    major, _, rest = version.partition(".")
    minor = rest.partition(".")[0]
    return float(minor) if major == "0" and minor.isdigit() else 1000.0
