"""What changed in vLLM's memory accounting from version to version, as data keyed by the version that brought it.

Sources: vLLM's release notes and code (0.32.0 read in full: `v1/core/kv_cache_utils.py`, `v1/kv_cache_interface.py`), and the
start-up logs in `benchmarks/data/vllm_memory_logs.jsonl`, whose notes name the versions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from functools import lru_cache

from passes.errors import InputError

#: The newest version whose accounting was read and checked; newer ones are taken to behave like it, which is said.
NEWEST = (0, 32)


@dataclass(frozen=True, slots=True)
class Rules:
    """vLLM's behaviour in one version.

    `v1`: the V1 engine. `hybrid_groups`: sliding and chunked layers get KV groups of their own (before, they took as much as
    full ones). `tokens_from_concurrency`: printed tokens = concurrency × max_model_len, not blocks // groups × block size.
    `graphs_in_budget`: the CUDA-graph estimate is subtracted before KV is allotted. `in_flight_batches`: batches that may
    hold a recycled block (async scheduling). `null_block`: one block is reserved before the start-up check. `mla_alignment`:
    elements an MLA entry is padded to, 0 = none; `mla`: False stores expanded keys and values. `utilization`: default of
    gpu_memory_utilization. `expert_padding`: multiples that the hidden and intermediate sides of experts in blocks are padded to
    (256 and 128 in the Marlin kernels: gpt-oss-120b 65.97 GiB, 61.29 without). `sampler_fp32_sort`: the sampler sorts all
    logits in fp32 on every card; later only where FlashInfer's sampler is missing.
    `group_slack`: the largest layer bucket is padded instead of split below this ratio.
    `group_order`: groups that follow the activation order are read (GPTQ's `desc_act`; 0.32 refuses it, pull request 54809).
    `bitsandbytes_plugin`: its loader is a package of its own, `vllm-bnb-plugin` (0.28, pull request 43529). `online_fp8`: what
    `--quantization` calls FP8 made while loading, a scale a matrix (0.32 refuses `fp8` for that: `quantization/fp8.py`).
    `state_checkpoints`: further states a sequence of Mamba 2 may hold, exported inside a prefill (read in 0.32; older ones unread).
    """

    version: tuple[int, int]
    v1: bool = True
    hybrid_groups: bool = True
    tokens_from_concurrency: bool = True
    graphs_in_budget: bool = True
    in_flight_batches: int = 2
    null_block: bool = True
    mla: bool = True
    mla_alignment: int = 0
    utilization: float = 0.92
    group_slack: float = 1.5
    expert_padding: tuple[int, int] = (1, 1)
    sampler_fp32_sort: bool = False
    group_order: bool = True
    state_checkpoints: int = 0
    bitsandbytes_plugin: bool = False
    online_fp8: str = "fp8"


#: (first version, what it changed back then), newest behaviour last; each entry holds until the next one.
_HISTORY: tuple[tuple[tuple[int, int], dict[str, object]], ...] = (
    ((0, 0), {"v1": False, "hybrid_groups": False, "tokens_from_concurrency": False, "graphs_in_budget": False, "in_flight_batches": 1,
              "null_block": False, "mla": False, "utilization": 0.90, "group_slack": 1.0,
              "expert_padding": (256, 128), "sampler_fp32_sort": True}),
    ((0, 7), {"mla": True, "mla_alignment": 640}),
    ((0, 8), {"v1": True, "mla_alignment": 0}),
    ((0, 10), {"hybrid_groups": True}),
    ((0, 11), {"group_slack": 1.25}),
    ((0, 17), {"sampler_fp32_sort": False}),
    ((0, 20), {"utilization": 0.92}),
    ((0, 21), {"graphs_in_budget": True}),
    ((0, 22), {"tokens_from_concurrency": True, "group_slack": 1.5}),
    ((0, 24), {"expert_padding": (1, 1)}),
    ((0, 28), {"bitsandbytes_plugin": True}),
    ((0, 30), {"in_flight_batches": 2, "null_block": True}),
    ((0, 32), {"group_order": False, "state_checkpoints": 1, "online_fp8": "fp8_per_tensor"}),
)  # fmt: skip


def parse_version(text: str) -> tuple[int, int]:
    """`0.19.1` as (0, 19). Raises InputError for what is no version."""
    match = re.match(r"v?(\d+)\.(\d+)", text)
    if not match:
        raise InputError(f"{text!r} is not an engine version", remedy="write it like 0.19.1")
    return int(match[1]), int(match[2])


@lru_cache(maxsize=256)
def rules_for(version: str | None) -> tuple[Rules, str | None]:
    """The behaviour of a version (None: the newest known), and a note where it is newer than what is known."""
    wanted = NEWEST if version is None else parse_version(version)
    facts: dict[str, object] = {}
    for since, change in _HISTORY:
        if wanted >= since:
            facts |= change
    known = {f.name for f in fields(Rules)}
    note = None
    if wanted > NEWEST:
        note = f"vLLM {version} is newer than {NEWEST[0]}.{NEWEST[1]}, the newest whose accounting is known: computed like that one"
    return Rules(wanted, **{k: v for k, v in facts.items() if k in known}), note  # type: ignore[arg-type]
