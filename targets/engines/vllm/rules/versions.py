"""What changed in vLLM's memory accounting from version to version, as data keyed by the version that brought it.

Sources: vLLM's release notes and code (0.32.0 read in full: `v1/core/kv_cache_utils.py`, `v1/kv_cache_interface.py`), and the
start-up logs in `benchmarks/data/vllm_memory_logs.jsonl`, whose notes name the versions. `benchmarks/read_vllm_wheels.py` holds what
can be read mechanically against the source in the wheels: none of 0.6.0 to 0.33.0 contradicts, but 0.8 in batch defaults, knowingly.
"""

from __future__ import annotations

import re
from dataclasses import fields
from functools import lru_cache
from typing import TypeVar

from passes.errors import InputError
from passes.record import dataclass

#: The newest version whose accounting was read and checked; newer ones are taken to behave like it, which is said.
NEWEST = (0, 33)
#: Where a version is given without its patch level.
LAST_PATCH = 99


Version = tuple[int, int, int]
#: Before every version, and after every one.
ALWAYS: Version = (0, 0, 0)
NEVER: Version = (1 << 31, 0, 0)
Fact = TypeVar("Fact")
#: Multiples that Marlin pads the hidden and intermediate sides of experts in blocks to.
MARLIN_PADDING = (256, 128)
#: And Triton's, on Hopper.
TRITON_PADDING = (1, 64)
#: Those of the kernels that `--moe-backend` names (the oracle of 4-bit experts; the same in 0.20 to 0.33). Of
#: TensorRT-LLM's by version: `blackwell_padding`.
BACKEND_PADDING = {
    "marlin": MARLIN_PADDING, "flashinfer_cutlass": (128, 128), "cutlass": (128, 128), "deep_gemm": (128, 128),
    "triton": TRITON_PADDING, "triton_unfused": TRITON_PADDING, "humming": TRITON_PADDING, "b12x": (1, 1),
    "flashinfer_b12x": (1, 1),
}  # fmt: skip
TENSORRT_LLM = "flashinfer_trtllm"


@dataclass(frozen=True, slots=True)
class Rules:
    """vLLM's behaviour in one version. Sources are files under `vllm/` of the releases; "from" a version: first seen there.

    Engine and runner. `v1`: the V1 engine (0.8). `v2_runner`: which models Model Runner V2 runs (`targets.engines.vllm.rules.runner`;
    `config/vllm.py`): none, dense Qwen3 (0.22), with Llama and Mistral (0.23), named classes quantized too (0.24), every dense generator
    (0.25), all (0.29).

    Budget. `utilization`: default of gpu_memory_utilization (`config/cache.py`, 0.92 from 0.20). `graphs_v1`, `graphs_v2`: the runner's
    estimate of CUDA graphs is subtracted before KV is allotted (`envs.py`, 0.20; `gpu/cudagraph_utils.py`, 0.29).
    `counts_reserved`: what loading keeps beside the weights, and fragments of the profile run, are subtracted too
    (`utils/mem_utils.py:memory_profiling`, 0.27); V2's penalty table is then in the budget, before in no term of it.

    Profile run. `sampler_fp32_sort`: V1's sampler sorts all logits in fp32 (to 0.16); `sorts_without_package`: only where FlashInfer, an
    extra of the wheel, is not installed (V1 to 0.11.0; from 0.11.1 it must be asked for). `sampler_v2_bytes`: of a row and entry of the
    vocabulary in V2's (`gpu/sample/sampler.py`: 6 in 0.22, 2 in 0.26, 14 in 0.33). `encoder_v2`: V2 profiles encoders (0.27).
    `expert_chunk`: tokens that the fused experts' kernel takes at once, 0 = all (`VLLM_FUSED_MOE_CHUNK_SIZE`, gone in 0.18).
    `counts_times`: Qwen3-VL's video counts its frames' times, written out (`models/qwen3_vl.py:get_max_video_tokens` up to 0.12).
    `keeps_residuals`: blocks of Qwen2.5-VL's encoder add with the norm (`models/qwen2_5_vl.py`; not in 0.9.2, in 0.10.2).
    `graphs_by_sequences`: no batch larger than twice max_num_seqs is captured (V1 in 0.9.2 captures all to 512, 0.10.2 does not).
    `graph_stride`: between sizes of captured graphs from 256 on, `graph_ceiling`: the largest on compute capability 10
    (`config/vllm.py:_set_cudagraph_sizes`).
    `huge_cards`: cards of 160 GiB and more batch 16,384 tokens (`engine/arg_utils.py:get_batch_defaults`, 0.28); `large_names`: what
    the names of cards with the larger defaults contain (to 0.8.4; then 70 GiB of memory), `small_names`: of those excepted from them
    (A100; GB10, by name from 0.33, before because NVML does not tell its memory, which counts as none). The source has A100 among the
    large ones in 0.8.5, and 1,024 sequences on every card to 0.8.3: recipes of that time start on cards where these would not, so they
    are not followed.

    `whole_items`: Gemma 4's pictures and videos must each fit one step where they see all of themselves (`is_mm_prefix_lm` in
    `transformers_utils/model_arch_config_convertor.py`, 0.20; `v1/core/encoder_cache_manager.py` refuses others), `raises_steps`: a default
    step is made as large (`engine/arg_utils.py:_get_min_mm_batched_tokens`, 0.22).

    Cache. `hybrid_groups`, `chunked_groups`: sliding (0.9.1) and chunked layers (0.14) get KV groups of their own; before, they took as
    much as full ones. `group_slack`: the largest layer bucket is padded instead of split below this ratio (1.25 in 0.12, 1.5 in 0.18).
    `tokens_from_concurrency`: printed tokens = concurrency × max_model_len, not blocks // groups × block size (0.20.1).
    `in_flight_batches`: batches that may hold a recycled block (`config/vllm.py:max_in_flight_tokens`, 2 from 0.26). `null_block`: one
    block is reserved before the start-up check (0.29). `packs_widest_group`: where pages of unlike size stand side by side, a block is as
    large as the widest group's pages (0.29), not as so many pages of each size. `hybrid_prefix_caching`: models with recurrent states
    cache prefixes by default, and keep two states a sequence for that (0.28). `steps_hold_blocks`: their prompts are cut at blocks then,
    so that a step must hold one (`validate_block_size`, 0.17 to 0.26). `states_for_graphs`: max_num_seqs may not exceed their blocks
    (`config/compilation.py`, 0.20). `state_checkpoints`: further states of Mamba 2 (0.32), `gdn_checkpoints`: of gated delta nets (0.33),
    exported inside a prefill. `mla`: False stores expanded keys and values (to 0.7.0); `mla_alignment`: elements an MLA entry is padded to,
    0 = none. Latent attention that picks tokens (DeepSeek V3.2, GLM-5; `models/config.py`, `platforms/cuda.py:_get_backend_priorities`,
    `mla_attention.py` of 0.11.2 to 0.32.0): `packs_latent`: cards, by the whole number of their capability, whose back end packs FP8
    entries with their scales; `packed_latent`: to how many bytes on the card at hand, 0 = not; `few_heads`: heads of a rank up to which
    another back end comes first on cards of 10.x; `sparse_auto`: what `auto` is for them, but GLM-5 (0.11; on 12.x from 0.24 on),
    `blackwell_sparse_auto`: for GLM-5 on 10.x. `shares_indexers`: layers that use another's indexer have none of their own
    (`models/deepseek_v2.py`, 0.24).

    Scheduler (`v1/core/sched/scheduler.py`, `config/vllm.py`). `async_scheduling`: a step is composed while the last one runs (default from
    0.14). `reserves_prompt`: a request is admitted where all of its prompt fits the cache (0.19), before where its first chunk did.

    Weights. `expert_padding`: multiples that the hidden and intermediate sides of experts in blocks are padded to (256 and 128 in the
    Marlin kernels: gpt-oss-120b 65.97 GiB, 61.29 in Triton's of 0.24 and newer), `blackwell_padding`: on compute capability 10, where
    TensorRT-LLM's kernels come first from 0.19 on (`round_up_hidden_size_and_intermediate_size` of the oracle of 4-bit experts in
    `fused_moe/oracle/`; 0.32's are asked in `benchmarks/kernel_oracle.py`). There these pad the intermediate side of experts in 16 bits
    too, to `dense_padding` (`oracle/unquantized.py`, 0.24), `pads_gated`: of those with gates as well (0.29). `wide_scales`: as
    `--moe-backend` sets it. `group_order`: groups that follow the activation order are read (`quantization/utils/gptq_utils.py` refuses
    them from 0.30). `refines_experts`: blocks of FP8 scales of experts that a cut splits are made smaller while loading
    (`oracle/fp8.py:refine_fp8_moe_block_shape`, 0.29). `bitsandbytes_plugin`: its loader is a package of its own (0.28).
    `online_fp8`: what `--quantization` calls FP8 made while loading, a scale a matrix (`quantization/fp8.py` refuses `fp8` from 0.31).
    `one_mixer_input`: gated delta nets multiply all inputs of their mixer as one matrix (`models/qwen3_next.py`, `in_proj` in 0.10.2).
    `names_dtypes`: `auto` falls back to float16 on cards without bfloat16 (0.9.1); `no_float16`: families that overflow there and
    refuse it (`_FLOAT16_NOT_SUPPORTED_MODELS`; `gemma3_text` from 0.10.2).
    """

    version: Version
    v1: bool = True
    v2_runner: str = "none"
    utilization: float = 0.92
    graphs_v1: bool = False
    graphs_v2: bool = False
    counts_reserved: bool = False
    sampler_fp32_sort: bool = False
    sorts_without_package: bool = False
    sampler_v2_bytes: int = 6
    encoder_v2: bool = False
    expert_chunk: int = 0
    counts_times: bool = False
    keeps_residuals: bool = True
    graphs_by_sequences: bool = True
    graph_stride: int = 16
    graph_ceiling: int = 512
    huge_cards: bool = False
    whole_items: bool = False
    raises_steps: bool = False
    large_names: tuple[str, ...] = ()
    small_names: tuple[str, ...] = ()
    hybrid_groups: bool = True
    chunked_groups: bool = True
    group_slack: float = 1.5
    tokens_from_concurrency: bool = True
    in_flight_batches: int = 1
    null_block: bool = False
    packs_widest_group: bool = False
    hybrid_prefix_caching: bool = False
    steps_hold_blocks: bool = False
    states_for_graphs: bool = False
    state_checkpoints: int = 0
    gdn_checkpoints: int = 0
    async_scheduling: bool = False
    reserves_prompt: bool = False
    mla: bool = True
    mla_alignment: int = 0
    sparse_auto: str = ""
    blackwell_sparse_auto: str = ""
    packs_latent: tuple[int, ...] = ()
    packed_latent: int = 0
    few_heads: int = 0
    shares_indexers: bool = True
    expert_padding: tuple[int, int] = (1, 1)
    blackwell_padding: tuple[int, int] = MARLIN_PADDING
    dense_padding: int = 1
    pads_gated: bool = False
    wide_scales: bool = False
    group_order: bool = True
    refines_experts: bool = False
    bitsandbytes_plugin: bool = False
    online_fp8: str = "fp8"
    one_mixer_input: bool = False
    names_dtypes: bool = False
    no_float16: tuple[str, ...] = ()

    def __hash__(self) -> int:
        """By what tells most apart: sums are looked up by it, thousands of times a plan."""
        return hash((self.version, self.v1, self.expert_padding, self.dense_padding))

    @property
    def said(self) -> str:
        """The version as people write it, without a patch level where none was given."""
        return version_text(self.version)


def said(since: Version) -> str:
    """Return a version that brought something: `0.20.1`, `0.20` for its first patch."""
    return ".".join(map(str, since if since[2] else since[:2]))


def at_version(history: tuple[tuple[Version, Fact], ...], version: Version) -> Fact | None:
    """Return the value that held in a version, of (first version, value) in order; None before the first."""
    return next((value for since, value in reversed(history) if version >= since), None)


#: (first version, what it changed back then), newest behaviour last; each entry holds until the next one.
_HISTORY: tuple[tuple[Version, dict[str, object]], ...] = (
    ((0, 0, 0), {"v1": False, "hybrid_groups": False, "chunked_groups": False, "tokens_from_concurrency": False, "mla": False,
                 "utilization": 0.90, "group_slack": 1.0, "expert_padding": MARLIN_PADDING, "sampler_fp32_sort": True,
                 "expert_chunk": 32768, "graph_stride": 8, "one_mixer_input": True, "counts_times": True, "keeps_residuals": False,
                 "shares_indexers": False}),
    ((0, 7, 1), {"mla": True, "mla_alignment": 640}),
    ((0, 8, 0), {"v1": True, "mla_alignment": 0, "large_names": ("h100", "h200"), "sorts_without_package": True,
                 "graphs_by_sequences": False}),
    ((0, 8, 5), {"large_names": (), "small_names": ("a100", "gb10")}),
    ((0, 9, 1), {"hybrid_groups": True, "names_dtypes": True, "no_float16": ("gemma2", "gemma3", "glm4")}),
    ((0, 10, 2), {"no_float16": ("gemma2", "gemma3", "gemma3_text", "glm4"), "keeps_residuals": True, "graphs_by_sequences": True}),
    ((0, 11, 0), {"one_mixer_input": False, "sparse_auto": "fp8", "packs_latent": (9, 10)}),
    ((0, 11, 1), {"sorts_without_package": False, "graph_stride": 16, "sparse_auto": ""}),
    ((0, 12, 0), {"group_slack": 1.25, "expert_chunk": 16384}),
    ((0, 13, 0), {"counts_times": False}),
    ((0, 14, 0), {"chunked_groups": True, "async_scheduling": True}),
    ((0, 17, 0), {"sampler_fp32_sort": False, "steps_hold_blocks": True}),
    ((0, 18, 0), {"group_slack": 1.5, "expert_chunk": 0, "few_heads": 16}),
    ((0, 19, 0), {"reserves_prompt": True, "blackwell_padding": (256, 256), "packs_latent": (9,), "few_heads": 0}),
    ((0, 20, 0), {"utilization": 0.92, "graphs_v1": True, "states_for_graphs": True, "whole_items": True}),
    ((0, 20, 1), {"tokens_from_concurrency": True}),
    ((0, 22, 0), {"v2_runner": "qwen3", "raises_steps": True}),
    ((0, 23, 0), {"v2_runner": "three"}),
    ((0, 24, 0), {"v2_runner": "named", "expert_padding": TRITON_PADDING, "dense_padding": 128, "packs_latent": (9, 12),
                  "shares_indexers": True}),
    ((0, 25, 0), {"v2_runner": "dense"}),
    ((0, 26, 0), {"sampler_v2_bytes": 2, "in_flight_batches": 2}),
    ((0, 27, 0), {"counts_reserved": True, "encoder_v2": True, "blackwell_padding": (256, 128), "steps_hold_blocks": False}),
    ((0, 28, 0), {"bitsandbytes_plugin": True, "huge_cards": True, "graph_ceiling": 1024, "hybrid_prefix_caching": True}),
    ((0, 29, 0), {"v2_runner": "all", "graphs_v2": True, "null_block": True, "packs_widest_group": True,
                  "refines_experts": True, "pads_gated": True}),
    ((0, 30, 0), {"group_order": False}),
    ((0, 31, 0), {"online_fp8": "fp8_per_tensor"}),
    ((0, 32, 0), {"state_checkpoints": 1, "blackwell_sparse_auto": "fp8"}),
    ((0, 33, 0), {"sampler_v2_bytes": 14, "gdn_checkpoints": 1}),
)  # fmt: skip


#: Versions whose behaviour differs from the one before in ways that are modelled.
KNOWN_VERSIONS = ("0.6", *(f"0.{minor}" + (f".{patch}" if patch else "") for (_, minor, patch), _ in _HISTORY[1:]))


def parse_version(text: str) -> Version:
    """Read `0.19.1` as (0, 19, 1), `0.19` as the last of its patches. Raises InputError for what is no version."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not match:
        raise InputError(f"{text!r} is not an engine version", remedy="write it like 0.19.1")
    return int(match[1]), int(match[2]), int(match[3]) if match[3] else LAST_PATCH


def version_text(version: Version) -> str:
    """Write (0, 19, 1) as `0.19.1`, a version without its patch level as `0.19`."""
    return ".".join(map(str, version[:2] if version[2] == LAST_PATCH else version))


@lru_cache(maxsize=256)
def rules_for(version: str | None) -> tuple[Rules, str | None]:
    """Return the behaviour of a version (None: the newest known), and a note where it is newer than what is known."""
    wanted = (*NEWEST, LAST_PATCH) if version is None else parse_version(version)
    facts: dict[str, object] = {}
    for since, change in _HISTORY:
        if wanted >= since:
            facts |= change
    known = {f.name for f in fields(Rules)}
    note = None
    if wanted[:2] > NEWEST:
        note = f"vLLM {version} is newer than {NEWEST[0]}.{NEWEST[1]}, the newest whose accounting is known: computed like that one"
    return Rules(wanted, **{k: v for k, v in facts.items() if k in known}), note  # type: ignore[arg-type]
