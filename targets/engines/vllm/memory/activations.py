"""The fitted terms of vLLM's memory on a GPU: activation peak of the profile run, memory outside torch, CUDA graphs.

The profile run peaks either inside a layer (the widest matrices' inputs and outputs for every token) or in the sampler
(sequences × vocabulary), whichever is larger. Beside the sampler stand the hidden states, the expert kernels' workspace
(`TritonExperts.workspace_shapes`: two buffers of tokens × experts a token × width) and the vision encoder's outputs. Before both the
encoder itself runs (`encoder.py`).
Coefficients and their errors stand in `memory_fit.json`, made by `benchmarks/fit_memory.py` from real start-ups.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.ir.architectures.config import Config
from passes.ir.model import Block, ModelIR, Role, remembered
from passes.ir.state import CompressedKV, LatentKV
from passes.record import dataclass
from targets.engines.vllm.memory.encoder import encoder_bytes, encodes, largest_item
from targets.engines.vllm.rules.runner import subtracts_graphs, uses_v2_runner
from targets.engines.vllm.rules.versions import Rules
from targets.gpu import Gpu
from targets.quantity import Basis, Quantity

#: Bytes of a row and entry of the vocabulary in V1's sampler: logits, a copy in fp32, softmax, noise.
_SAMPLER_V1 = 14
#: The same where tokens are drafted, of which the trial run checks one a sequence: logits of that and of the token behind it, raw and in
#: fp32, copies of both, what is left of them by top-k and top-p, noise (`_dummy_sampler_run`, `v1/sample/rejection_sampler.py`).
_SAMPLER_DRAFTED = 26
#: Rows in fp32 of the kernel that masks for it, one a multiprocessor: of an H100, others have fewer.
_MASK_ROWS = 132
#: Of V2's tables of penalties beside it, for as long as the engine runs: counts in 4 bytes, two masks of a bit
#: (`gpu/sample/penalties.py`, `gpu/structured_outputs.py`).
_PENALTIES = 4.25
#: What a machine whose memory is its card's takes beside: the engine's own processes. GB10: 2.0 GiB of a third of it on 0.13, 3.2 with 8
#: sequences on 0.20, 5.8 on 0.18, 6.8 on 0.27; the middle of these, later ones counted more.
_INTEGRATED = Quantity(5.0 * 2**30, 1.0 * 2**30, 8.5 * 2**30, Basis.ASSUMED)
#: And for the network between two of them: NCCL's and the launcher's buffers (eugr/spark-vllm-docker#396: 0.29.1, 14 GiB in all, of which
#: 1.5 are a small batch and graphs).
_NETWORKED = Quantity(8.0 * 2**30, 6.0 * 2**30, 10.0 * 2**30, Basis.ASSUMED)
#: Up to 0.8 memory that others hold on the card counts as the engine's: printed outside of torch were 0.03 to 0.44 GiB on ten machines
#: with one card, 1.79 on an eleventh (vllm-project/vllm#10511).
_OTHERS_BEFORE, _OTHERS = (0, 9, 0), 1.1 * 2**30
#: DeepSeek V4's start-ups are in no fit. Two reports: 0.7 GiB more than is counted on GH200 with 0.22 (vllm-project/vllm#44376), 5.1
#: less on B200 with 0.25 (vllm-project/recipes#762).
_COMPRESSED = Quantity(0.0, -5.2 * 2**30, 1.5 * 2**30, Basis.ASSUMED)
#: The most tokens that latent attention expands at once in its trial run (`mla_attention.py:determine_chunked_prefill_workspace_size`).
_EXPANDED_MOST, _EXPANDED_CONTEXTS, _EXPANDED_BLOCKS = 65536, 8, 4
#: Heads that the kernels of DeepSeek V4's attention are made for; bytes of its indexer's logits in the trial run, by default
#: (`VLLM_SPARSE_INDEXER_MAX_LOGITS_MB`).
_KERNEL_HEADS, _INDEXER_LOGITS = (64, 128), 512 << 20
#: The largest batch of a captured graph on most cards; graphs of the start-ups that are fitted; data-centre Blackwell's major capability.
_LARGEST_GRAPH, _FITTED_GRAPHS, _BLACKWELL, _RTX_BLACKWELL = 512, 102, 10, 12
#: Of what all graphs take, what the first take, however few there are: estimates of 0.13 to 0.61 GiB for 2 to 9 graphs (0.20 to 0.24),
#: of 0.52 to 0.79 for 86.
_FIRST_GRAPHS = 0.3
_WIDE = {Role.UP, Role.GATE, Role.GATE_UP, Role.QKV, Role.Q, Role.MIXER_IN}
_BANK_IN = {Role.UP, Role.GATE, Role.GATE_UP}


@dataclass(frozen=True, slots=True)
class Profile:
    """What the profile run of one rank sees: tokens, sequences, parallel degree, and the card's compute capability × 10.

    `samples`: this rank holds the head (the last pipeline stage). `context`: max_model_len. `linked`: cards speak over a switch
    of their own (NVLink of server cards). `integrated`: the card's memory is the machine's. `largest_graph`: tokens of the largest captured
    graph, None: the version's default. `pictures`: of a request at most, where their number is limited; no videos then.
    `dp`: replicas, whose tokens each rank's experts all take (`fused_moe`'s gather before its experts, since 0.8.0). `drafts`: tokens are
    drafted, and checked by the sampler.
    """

    tokens: int
    sequences: int
    tp: int
    pp: int
    eager: bool
    capability: int = 90
    samples: bool = True
    context: int = 8192
    linked: bool = True
    integrated: bool = False
    largest_graph: int | None = None
    pictures: int = 0
    dp: int = 1
    ep: int = 1
    drafts: bool = False

    @property
    def expert_cut(self) -> int:
        """Ranks over which each expert is cut."""
        return 1 if self.ep > 1 else self.tp * self.dp


@lru_cache(maxsize=1)
def fit() -> dict[str, Any]:
    """Return the fitted coefficients."""
    data: dict[str, Any] = json.loads(Path(__file__).with_name("memory_fit.json").read_text(encoding="utf-8"))
    return data


def accounting_era(rules: Rules) -> str:
    """Name what is fitted apart: `old` before the sort in the sampler went (0.17), `reserved` where reserved memory counts, else `v1`."""
    return "old" if rules.version < (0, 17, 0) else "reserved" if rules.counts_reserved else "v1"


def _era(ir: ModelIR, rules: Rules) -> str:
    """What errors are told apart by: how memory is counted, and which runner profiles."""
    counted = accounting_era(rules)
    return "v2" if counted == "v1" and uses_v2_runner(ir, rules) else counted


def _quantity(name: str, value: float, era: str) -> Quantity:
    """A fitted term with its error: 90 % quantiles of measured / predicted, and a floor in bytes for what stays unexplained."""
    term = fit()[name]
    low, high = term["ratio_90"][era]
    floor = term["floor_bytes"]
    return Quantity(value, max(0.0, value * low - floor), value * high + floor, Basis.CALIBRATED)


@lru_cache(maxsize=1 << 12)
def _width(block: Block, tp: int, cut: int) -> float:
    """Elements a token that the widest step of a layer holds at once on a rank: fused outputs of its matrices."""
    shared = sum(lin.out_features for lin in block.linears if lin.role in _WIDE and lin.copies == 1)
    routed = sum(lin.out_features * lin.active for lin in block.linears if lin.role in _WIDE and lin.copies > 1)
    dense = sum(lin.out_features for lin in block.linears if lin.role in _BANK_IN and lin.copies == 1)
    return max(dense / tp, shared / tp if not routed else 0.0, routed / cut)


@lru_cache(maxsize=1 << 12)
def _workspace(block: Block, tp: int, marlin: bool) -> float:
    """Elements a token of the two buffers of the fused experts' kernel, equal in Triton's and Marlin's; 0 without experts, or with ones in
    blocks that neither multiplies.
    """
    banks = [lin for lin in block.linears if lin.copies > 1 and (marlin or not lin.storage.expert_blocks)]
    inner = sum(lin.out_features for lin in banks if lin.role in _BANK_IN) / tp
    if not inner:
        return 0.0
    outer = max(lin.out_features for lin in banks if lin.role is Role.DOWN)
    active = max(lin.active for lin in banks)
    return active * (max(inner / 2, outer) + max(inner, outer))


def _multiplies_blocks(block: Block, profile: Profile) -> bool:
    """Whether Marlin multiplies experts in blocks: DeepSeek V4's where Blackwell's own kernels are not (`_get_priority_backends` of
    `fused_moe/oracle`, 0.22). Start-ups of gpt-oss, whose kernels are others, show no such buffers.
    """
    return isinstance(block.state, CompressedKV) and profile.capability < _BLACKWELL * 10


def _attended_bytes(ir: ModelIR, profile: Profile, experts: float) -> float:
    """Bytes that DeepSeek V4's attention holds beside a layer's inputs: queries and outputs of as many heads as its kernels are made for,
    queries before they are padded to that, what stands in for the indexer's logits, the experts' buffers, which stay between layers, and
    what it keeps for drafts (`models/deepseek_v4/attention.py`, `nvidia/flashmla.py`, `nvidia/model.py:_mtp_hidden_buffer`,
    `layers/sparse_attn_indexer.py`, `v1/worker/workspace.py`; 0.22 and 0.33).
    """
    states = [block.state for block, _ in ir.decoder.counts if isinstance(block.state, CompressedKV)]
    if not states:
        return 0.0
    heads = max(1, Config(ir.config, ir.name).integer("num_attention_heads", at_least=1) // profile.tp)
    padded = next((least for least in _KERNEL_HEADS if heads <= least), heads)
    held = 2 * padded + (heads if heads < padded else 0)
    logits = _INDEXER_LOGITS if any(state.index_dim for state in states) else 0
    drafts = profile.tokens * _streams(ir) * ir.hidden_size * 2
    return profile.tokens * held * states[0].head_dim * 2 + logits + experts + drafts


def _streams(ir: ModelIR) -> int:
    return Config(ir.config, ir.name).integer("hc_mult", default=1, at_least=1, at_most=64)


def peak_bytes(ir: ModelIR, profile: Profile, rules: Rules, constants: Mapping[str, float]) -> float:
    """Return bytes of the activation peak of the profile run on one rank, with the given constants."""
    size = 4 if ir.dtype == "F32" else 2
    blocks = [block for block, _ in ir.decoder.counts]
    # Hyper-connections carry several streams of hidden states through the layers (DeepSeek V4).
    hidden = profile.tokens * size * ir.hidden_size * _streams(ir)
    wide = profile.tokens * size * max((_width(block, profile.tp, profile.expert_cut) for block in blocks), default=0.0)
    # Data-centre Blackwell's own kernels hold none of the gathered tokens' buffers (vllm-project/recipes#762: DP 8 on B200).
    own = _BLACKWELL * 10 <= profile.capability < _RTX_BLACKWELL * 10
    gathered = profile.tokens * (1 if own else profile.dp)
    chunk = min(gathered, rules.expert_chunk or gathered)
    buffers = max((_workspace(b, profile.expert_cut, _multiplies_blocks(b, profile)) for b in blocks), default=0.0)
    experts = chunk * size * buffers
    expanded = _expanded_bytes(ir, profile) if rules.v1 and rules.mla else 0.0
    widest = max(constants["widest"] * wide, experts, _attended_bytes(ir, profile, experts))
    layer = constants["hidden"] * hidden + widest + expanded + constants["layer_bytes"]
    v2 = uses_v2_runner(ir, rules)
    profiled = encodes(ir) and (rules.encoder_v2 or not v2)
    outputs, encoder = hidden if profiled else 0.0, 0.0
    item = largest_item(ir, profile.context, rules, pictures=profile.pictures > 0) if profiled else None
    if item is not None:
        outputs, encoder = encoder_bytes(
            ir,
            item,
            rules,
            tokens=profile.tokens,
            most=profile.sequences * max(1, min(profile.context // item.tokens, profile.pictures or profile.context)),
            tp=profile.tp,
        )
        layer += outputs
    if not profile.samples:
        return max(layer, encoder)
    rows = min(profile.sequences, profile.tokens)
    sampler = rows * ir.vocab_size * _sampler_bytes(v2, profile, rules, constants)
    sampler += hidden + constants["base_bytes"] + (experts if rules.v1 else 0)
    if not (v2 or rules.sampler_fp32_sort):
        sampler += _MASK_ROWS * ir.vocab_size * 4
    if profiled:
        sampler += outputs + constants["encoder_bytes"]
    return max(layer, sampler, encoder)


def _sampler_bytes(v2: bool, profile: Profile, rules: Rules, constants: Mapping[str, float]) -> float:
    if v2:
        return rules.sampler_v2_bytes
    if rules.sampler_fp32_sort:
        return constants["sampler_sort_bytes"]
    return _SAMPLER_DRAFTED if profile.drafts else _SAMPLER_V1


def _expanded_bytes(ir: ModelIR, profile: Profile) -> float:
    """Bytes of the keys and values that latent attention (MLA) expands in its trial run."""
    most = max(_EXPANDED_CONTEXTS * profile.context, _EXPANDED_BLOCKS * profile.sequences * 16)
    return max(
        (
            min(most, _EXPANDED_MOST) * lin.out_features / profile.tp * 2
            for block, _ in ir.decoder.counts
            for lin in block.linears
            if isinstance(block.state, LatentKV) and lin.in_features == block.state.latent_rank
        ),
        default=0.0,
    )


@dataclass(frozen=True, slots=True)
class Overhead:
    """What one rank takes beside weights and cache. `subtracted`: all that the budget loses to it; errors of terms that start-ups print as
    one sum are known for that sum, which is narrower than the terms' own together.
    """

    activations: Quantity
    non_torch: Quantity
    cuda_graphs: Quantity
    subtracted: Quantity


@remembered
def overhead(ir: ModelIR, profile: Profile, rules: Rules) -> Overhead:
    """Return the terms of one rank, and what is subtracted from its budget."""
    peak, outside, graphs = (term(ir, profile, rules) for term in (activations, non_torch, cuda_graphs))
    counted = graphs if subtracts_graphs(ir, rules) else Quantity.exact(0)
    taken = peak + outside + counted
    if rules.v1:  # the sum is known, not its terms
        beside = outside.value + counted.value
        taken = Quantity(peak.value + beside, peak.low + beside, peak.high + beside, peak.basis)
    if any(isinstance(block.state, CompressedKV) for block, _ in ir.decoder.counts):
        taken += _COMPRESSED
    if rules.version < _OTHERS_BEFORE:
        taken = replace(taken, high=taken.high + _OTHERS)
    return Overhead(peak, outside, graphs, taken)


def activations(ir: ModelIR, profile: Profile, rules: Rules) -> Quantity:
    """Return the activation peak of the profile run on one rank, what V2 keeps for sampling where the version counts it, and what
    start-ups take
    beside all terms (`beside` in memory_fit.json: compilers, autotuning, attention's workspaces, fragments).
    """
    least, most = (
        peak_bytes(ir, profile, variant, fit()["activation"]) + counted_penalties(ir, profile, variant)
        for variant in samplers(rules)
    )
    known = (least + most) / 2
    if not rules.v1:
        return _quantity("activation", known, _era(ir, rules))
    if profile.integrated:
        return Quantity.exact(known) + _INTEGRATED + (_NETWORKED if profile.tp > 1 else Quantity.exact(0))
    low, middle, high = fit()["beside"][regime(profile, rules)]
    # What compilers and graphs take is not taken where neither is at work; how far the rest may be off is known for all together.
    taken = 0.0 if profile.eager else middle
    return Quantity(
        known + taken, max(0.0, least + taken + low - middle), most + taken + high - middle, Basis.CALIBRATED
    )


@lru_cache(maxsize=1 << 8)
def samplers(rules: Rules) -> tuple[Rules, Rules]:
    """Return what a version may do with the sampler's rows, least memory first: which it was, a package decides that it cannot tell."""
    return (replace(rules, sampler_fp32_sort=False) if rules.sorts_without_package else rules), rules


def regime(profile: Profile, rules: Rules) -> str:
    """Return which start-ups tell what is taken beside the terms: those before the sort in the sampler went; Hopper's up to 0.26, where
    the terms were fitted, of one card or several; or all others.
    """
    if rules.version < (0, 17, 0):
        return "sorting"
    if profile.capability == 90 and not rules.counts_reserved:
        return "hopper" if profile.tp == 1 else "hoppers"
    return "other"


def counted_penalties(ir: ModelIR, profile: Profile, rules: Rules) -> float:
    """Return bytes of V2's tables of penalties and masks where the budget counts them: up to 0.26 they are in no term of it."""
    counted = rules.counts_reserved and profile.samples and uses_v2_runner(ir, rules)
    return profile.sequences * ir.vocab_size * _PENALTIES if counted else 0.0


def explained_bytes(ir: ModelIR, profile: Profile, rules: Rules, fitted: Mapping[str, Any]) -> float:
    """Return all that the terms take from the budget beside weights and cache, by given coefficients."""
    peak = peak_bytes(ir, profile, rules, fitted["activation"]) + counted_penalties(ir, profile, rules)
    outside = _non_torch_bytes(ir, profile, rules, fitted)
    return peak + outside + (_graph_bytes(ir, profile, rules, fitted) if subtracts_graphs(ir, rules) else 0.0)


def is_integrated(gpu: Gpu) -> bool:
    """Return whether a card's memory is the machine's: what other processes take while the engine starts counts as its own."""
    return "GB10" in gpu.name


def non_torch(ir: ModelIR, profile: Profile, rules: Rules) -> Quantity:
    """Return bytes that CUDA, NCCL and libraries hold outside torch on one rank."""
    return _quantity("non_torch", _non_torch_bytes(ir, profile, rules, fit()), _era(ir, rules))


def _non_torch_bytes(ir: ModelIR, profile: Profile, rules: Rules, fitted: Mapping[str, Any]) -> float:
    values: Mapping[str, int] = fitted["non_torch"]["old" if _era(ir, rules) == "old" else "new"]
    # The collectives' symmetric buffers exist from Hopper on only, and between cards on a switch of their own.
    wide = "tp_bytes" if profile.capability >= 90 and profile.linked else "tp_pcie_bytes"
    return values["tp1_bytes"] if profile.tp == 1 else values[wide]


def cuda_graphs(ir: ModelIR, profile: Profile, rules: Rules) -> Quantity:
    """Return bytes of the captured CUDA graphs (the estimate, where the version subtracts one); zero when eager."""
    if profile.eager:
        return Quantity.exact(0)
    return _quantity("cuda_graphs", _graph_bytes(ir, profile, rules, fit()), _era(ir, rules))


def _graph_bytes(ir: ModelIR, profile: Profile, rules: Rules, fitted: Mapping[str, Any]) -> float:
    if profile.eager:
        return 0.0
    values: Mapping[str, float] = fitted["cuda_graphs"]["estimate" if subtracts_graphs(ir, rules) else "taken"]
    layers = len(ir.decoder.layers) / profile.pp
    further = captured_graphs(profile.sequences, profile.capability, rules, profile.largest_graph) / _FITTED_GRAPHS
    share = _FIRST_GRAPHS + (1 - _FIRST_GRAPHS) * further
    return float(share * (values["base_bytes"] + layers * values["layer_bytes"]))


def captured_graphs(sequences: int, capability: int, rules: Rules, largest: int | None = None) -> int:
    """Return how many graphs are captured: one a size of a mixed batch, one more a size that is all decoding.

    Sizes: 1, 2, 4, multiples of 8 below 256 and of the version's stride from there up to twice the sequences, at most 512, or what the
    version has as the most on data-centre Blackwell (`config/vllm.py:_set_cudagraph_sizes`). `largest`: the most that is asked for.
    """
    most = largest or (rules.graph_ceiling if capability // 10 == _BLACKWELL else _LARGEST_GRAPH)
    mixed = min(2 * sequences, most) if rules.graphs_by_sequences or largest else most
    return _graphs_of_sizes(sequences, mixed, rules.graph_stride)


@lru_cache(maxsize=1 << 8)
def _graphs_of_sizes(sequences: int, most: int, stride: int) -> int:
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, most + 1, stride)]
    mixed = [size for size in sizes if size <= most]
    return len(mixed) + len([size for size in sizes if size <= sequences])
