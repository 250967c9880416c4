"""The fitted terms of vLLM's memory on a GPU: activation peak of the profile run, memory outside torch, CUDA graphs.

The profile run peaks either inside a layer (the widest matrices' inputs and outputs for every token) or in the sampler
(sequences × vocabulary), whichever is larger. Beside the sampler stand the hidden states, the expert kernels' workspace
(`TritonExperts.workspace_shapes`: two buffers of tokens × experts a token × width) and the vision encoder's outputs.
Coefficients and their errors stand in `memory_fit.json`, made by `benchmarks/fit_memory.py` from real start-ups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from passes.ir.model import Block, ModelIR, Role
from targets.engines.vllm.versions import Rules
from targets.quantity import Basis, Quantity

#: Tokens that the fused experts' kernel takes at once (`VLLM_FUSED_MOE_CHUNK_SIZE`).
_EXPERT_CHUNK = 32768
_WIDE = {Role.UP, Role.GATE, Role.GATE_UP, Role.QKV, Role.Q, Role.MIXER_IN}
_BANK_IN = {Role.UP, Role.GATE, Role.GATE_UP}


@dataclass(frozen=True, slots=True)
class Profile:
    """What the profile run of one rank sees: tokens, sequences, parallel degree, and the card's compute capability × 10.

    `samples`: this rank holds the head (the last pipeline stage).
    """

    tokens: int
    sequences: int
    tp: int
    pp: int
    eager: bool
    capability: int = 90
    samples: bool = True


@lru_cache(maxsize=1)
def fit() -> dict[str, Any]:
    """The fitted coefficients."""
    data: dict[str, Any] = json.loads(
        files("targets.engines.vllm").joinpath("memory_fit.json").read_text(encoding="utf-8")
    )
    return data


def _era(rules: Rules) -> str:
    return "new" if rules.version >= (0, 17) else "old"


def _quantity(name: str, value: float, rules: Rules) -> Quantity:
    """A fitted term with its error: 90 % quantiles of measured / predicted, and a floor in bytes for what stays unexplained."""
    term = fit()[name]
    low, high = term["ratio_90"][_era(rules)]
    floor = term["floor_bytes"]
    return Quantity(value, max(0.0, value * low - floor), value * high + floor, Basis.CALIBRATED)


@lru_cache(maxsize=1 << 12)
def _width(block: Block, tp: int) -> float:
    """Elements a token that the widest step of a layer holds at once on a rank: fused outputs of its matrices."""
    shared = sum(lin.out_features for lin in block.linears if lin.role in _WIDE and lin.copies == 1)
    routed = sum(lin.out_features * lin.active for lin in block.linears if lin.role in _WIDE and lin.copies > 1)
    return (
        max(
            sum(lin.out_features for lin in block.linears if lin.role in _BANK_IN and lin.copies == 1),
            shared if not routed else 0.0,
            routed,
        )
        / tp
    )


@lru_cache(maxsize=1 << 12)
def _workspace(block: Block, tp: int) -> float:
    """Elements a token of the two buffers of the fused experts' kernel; 0 without experts or with ones in blocks (another kernel)."""
    banks = [lin for lin in block.linears if lin.copies > 1 and not lin.storage.expert_blocks]
    inner = sum(lin.out_features for lin in banks if lin.role in _BANK_IN) / tp
    if not inner:
        return 0.0
    outer = max(lin.out_features for lin in banks if lin.role is Role.DOWN)
    active = max(lin.active for lin in banks)
    return active * (max(inner / 2, outer) + max(inner, outer))


def peak_bytes(ir: ModelIR, profile: Profile, rules: Rules, constants: Mapping[str, float]) -> float:
    """Bytes of the activation peak of the profile run on one rank, with the given constants."""
    size = 4 if ir.dtype == "F32" else 2
    blocks = [block for block, _ in ir.decoder.counts]
    hidden = profile.tokens * size * ir.hidden_size
    wide = profile.tokens * size * max((_width(block, profile.tp) for block in blocks), default=0.0)
    experts = min(profile.tokens, _EXPERT_CHUNK) * size * max((_workspace(b, profile.tp) for b in blocks), default=0.0)
    layer = constants["hidden"] * hidden + max(constants["widest"] * wide, experts)
    if not profile.samples:
        return layer
    sort = rules.sampler_fp32_sort or profile.capability < 90
    rows = min(profile.sequences, profile.tokens)
    sampler = rows * ir.vocab_size * constants["sampler_sort_bytes" if sort else "sampler_bytes"]
    sampler += hidden + constants["base_bytes"] + (experts if rules.v1 else 0)
    if any(stack.name in ("vision", "audio") for stack in ir.stacks):
        sampler += hidden + constants["encoder_bytes"]
    return max(layer, sampler)


def activations(ir: ModelIR, profile: Profile, rules: Rules) -> Quantity:
    """The activation peak of the profile run on one rank."""
    return _quantity("activation", peak_bytes(ir, profile, rules, fit()["activation"]), rules)


def non_torch(profile: Profile, rules: Rules) -> Quantity:
    """Bytes that CUDA, NCCL and libraries hold outside torch on one rank."""
    era = fit()["non_torch"][_era(rules)]
    # The collectives' symmetric buffers exist from Hopper on only.
    wide = "tp_bytes" if profile.capability >= 90 else "tp_pcie_bytes"
    return _quantity("non_torch", era["tp1_bytes"] if profile.tp == 1 else era[wide], rules)


def cuda_graphs(ir: ModelIR, profile: Profile, rules: Rules) -> Quantity:
    """Bytes of the captured CUDA graphs (the estimate, where the version subtracts one); zero when eager."""
    if profile.eager:
        return Quantity.exact(0)
    era = fit()["cuda_graphs"]["estimate" if rules.graphs_in_budget else "taken"]
    layers = len(ir.decoder.layers) / profile.pp
    return _quantity("cuda_graphs", era["base_bytes"] + layers * era["layer_bytes"], rules)
