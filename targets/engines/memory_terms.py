"""The fitted terms of vLLM's memory on a GPU: activation peak of the profile run, memory outside torch, CUDA graphs.

Coefficients and their errors stand in `memory_fit.json`, made by `benchmarks/fit_memory.py` from real start-ups. Each term is
physical: buffers grow with the tokens of the profile run and the widest matrices, the sampler's with sequences × vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from passes.ir.model import ModelIR, Role
from targets.engines.versions import Rules
from targets.quantity import Basis, Quantity

_GIB = 1 << 30
_WIDE = {Role.UP, Role.GATE, Role.GATE_UP, Role.QKV, Role.Q, Role.MIXER_IN}


@dataclass(frozen=True, slots=True)
class Profile:
    """What the profile run of one rank sees: tokens, sequences, parallel degree, kind of card."""

    tokens: int
    sequences: int
    tp: int
    pp: int
    eager: bool


@lru_cache(maxsize=1)
def fit() -> dict[str, Any]:
    """The fitted coefficients."""
    data: dict[str, Any] = json.loads(files("targets.engines").joinpath("memory_fit.json").read_text(encoding="utf-8"))
    return data


def _era(rules: Rules) -> str:
    if not rules.v1:
        return "v0"
    return "v1" if rules.version < (0, 21) else "v1_graphs"


def _quantity(name: str, value: float) -> Quantity:
    """A fitted term with its error: the 90 % quantiles of measured / predicted, or of the difference for small terms."""
    low, high = fit()[name]["ratio_90"]
    return Quantity(value, value * low, value * high, Basis.CALIBRATED)


def widest_elements(ir: ModelIR, tp: int) -> float:
    """Elements a token that the widest step of a layer holds at once on a rank: fused inputs and outputs of its matrices."""
    widest = 0.0
    for block, _ in ir.decoder.counts:
        shared = sum(lin.out_features for lin in block.linears if lin.role in _WIDE and lin.copies == 1)
        routed = sum(lin.out_features * lin.active for lin in block.linears if lin.role in _WIDE and lin.copies > 1)
        widest = max(widest, (shared + routed) / tp)
    return widest


def activations(ir: ModelIR, profile: Profile, rules: Rules) -> Quantity:
    """Bytes of the activation peak of the profile run on one rank."""
    era = fit()["activation"][_era(rules)]
    size = 4 if ir.dtype == "F32" else 2
    buffers = profile.tokens * size * (era["hidden"] * ir.hidden_size + era["widest"] * widest_elements(ir, profile.tp))
    sampler = min(profile.sequences, profile.tokens) * ir.vocab_size * era["sampler_bytes"]
    return _quantity("activation", era["base_bytes"] + max(buffers, sampler) + era["overlap"] * min(buffers, sampler))


def non_torch(profile: Profile, rules: Rules) -> Quantity:
    """Bytes that CUDA, NCCL and libraries hold outside torch on one rank."""
    era = fit()["non_torch"][_era(rules)]
    return _quantity("non_torch", era["tp1_bytes"] if profile.tp == 1 else era["tp_bytes"])


def cuda_graphs(profile: Profile, rules: Rules) -> Quantity:
    """Bytes of the captured CUDA graphs; zero when eager."""
    if profile.eager:
        return Quantity.exact(0)
    era = fit()["cuda_graphs"][_era(rules)]
    return _quantity("cuda_graphs", era["tp1_bytes"] if profile.tp == 1 else era["tp_bytes"])
