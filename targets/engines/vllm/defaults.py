"""What a version of vLLM does on a card where nothing is set: its behaviour there, tokens and sequences of a step."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from targets.engines.engine import Settings
from targets.engines.vllm.rules.checkpoint_cache import PACKED
from targets.engines.vllm.rules.versions import BACKEND_PADDING, MARLIN_PADDING, TENSORRT_LLM, Rules, rules_for
from targets.gpu import Gpu
from targets.workload import Workload

_GIB = 1 << 30
#: Cards with more memory than this get the larger defaults (vLLM's `EngineArgs.get_batch_defaults`).
_LARGE_CARD_BYTES, _HUGE_CARD_BYTES = 70 * _GIB, 160 * _GIB
#: Compute capabilities × 10 between which experts in blocks of 4 bits have kernels beside Marlin's.
_HOPPER, _BLACKWELL, _RTX_BLACKWELL = 90, 100, 120
#: From here on DeepGEMM keeps the scales of 4-bit experts as they are stored.
_PACKED_SCALES = (0, 24, 0)


def rules_on_card(version: str | None, gpu: Gpu) -> tuple[Rules, str | None]:
    """Return a version's behaviour on a card: V1 needs compute capability 8.0; before 0.10.2 older cards fell back to V0.

    Below 9.0 and on RTX Blackwell experts in blocks of 4 bits are Marlin's, which goes on padding them, and TensorRT-LLM's on other
    Blackwell (vLLM 0.33's oracles of fused experts).
    """
    return rules_of(version, gpu.capability or 0)


def rules_as_set(settings: Settings, gpu: Gpu) -> tuple[Rules, str | None]:
    """Return the same with the kernels of experts that are asked for: each pads them its own way."""
    rules, note = rules_on_card(settings.version, gpu)
    backend = settings.features.expert_kernels
    if backend == TENSORRT_LLM:
        rules = replace(rules, expert_padding=rules.blackwell_padding)
    elif backend in BACKEND_PADDING:
        rules = replace(rules, expert_padding=BACKEND_PADDING[backend], dense_padding=1)
        # `_upcast_e8m0_to_fp32` of the oracle of 4-bit experts, 0.23; 0.24 packs them.
        rules = replace(rules, wide_scales=backend == "deep_gemm" and rules.version < _PACKED_SCALES)
    return rules, note


@lru_cache(maxsize=1 << 8)
def rules_of(version: str | None, capability: int) -> tuple[Rules, str | None]:
    """Return the same by a card's compute capability × 10 alone."""
    rules, note = rules_for(version)
    if 0 < capability < _HOPPER or capability >= _RTX_BLACKWELL:
        rules = replace(rules, expert_padding=MARLIN_PADDING)
    elif capability >= _BLACKWELL:
        rules = replace(rules, expert_padding=rules.blackwell_padding)
    if not _BLACKWELL <= capability < _RTX_BLACKWELL:
        rules = replace(rules, dense_padding=1, blackwell_sparse_auto="", few_heads=0)
    if capability // 10 in rules.packs_latent:
        auto = "fp8" if capability >= _RTX_BLACKWELL else rules.sparse_auto
        rules = replace(rules, packed_latent=PACKED["fp8_ds_mla"], sparse_auto=auto)
    if rules.v1 and rules.version < (0, 10, 2) and 0 < capability < 80:
        rules = replace(rules, v1=False, hybrid_groups=False, chunked_groups=False, sorts_without_package=False)
    return rules, note


def batched_tokens(settings: Settings, gpu: Gpu, workload: Workload, rules: Rules) -> int:
    """Return max_num_batched_tokens: as set, else the version's default for the card."""
    if settings.max_num_batched_tokens:
        return settings.max_num_batched_tokens
    if not rules.v1:
        # V0 without chunked prefill profiles a whole context; above 32K chunked prefill starts by itself with 2048.
        return max(2048, workload.context) if workload.context <= 32768 else 2048
    huge = rules.huge_cards and gpu.memory_bytes.value >= _HUGE_CARD_BYTES
    default = 16384 if huge else 8192 if _is_large(gpu, rules) else 2048
    if settings.features.whole_prompts:  # vLLM's `EngineArgs._set_default_max_num_seqs_and_batched_tokens_args`
        default = max(default, workload.context)
    return min(default, (settings.max_num_seqs or default_sequences(gpu, rules)) * workload.context)


def default_sequences(gpu: Gpu, rules: Rules) -> int:
    """Return max_num_seqs by version and card."""
    return 1024 if rules.v1 and _is_large(gpu, rules) else 256


def _is_large(gpu: Gpu, rules: Rules) -> bool:
    """Whether a card gets the larger defaults: by its name in the first versions of V1, then by its memory, some names excepted."""
    name = gpu.name.lower()
    if rules.large_names:
        return any(part in name for part in rules.large_names)
    return gpu.memory_bytes.value >= _LARGE_CARD_BYTES and not any(part in name for part in rules.small_names)
