"""Runs inside the engine's environment: what the real vLLM schedules in each step of a workload, as JSON lines.

    python real_scheduler.py CASES.json   [{"name", "lag", "tokens", "sequences", "blocks", "prefix", "caching", "whole_prompt", "due",
                                            "at_once", "delay", "lengths": [[prompt, answer], …]}, …]
                                          →  {"name", "steps": [[[request, tokens], …], …], "preempted"} each

Its own `Scheduler` and `AsyncScheduler` on a toy config, no weights: a step takes one unit of time, every answer has its full length.
Batches go through a queue as deep as `EngineCore.step_with_batch_queue` has it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections import deque
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}

import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16
LONGEST = 16384
VOCABULARY = 32000
TOY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": LONGEST,
    "torch_dtype": "float32",
}  # fmt: skip


def scheduler_of(case: dict, folder: str) -> Scheduler:
    """The engine's own scheduler with the case's limits, on a cache of one group of full attention."""
    cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=case["caching"])
    config = VllmConfig(
        model_config=ModelConfig(model=folder, dtype="float32", max_model_len=LONGEST, skip_tokenizer_init=True),
        cache_config=cache,
        scheduler_config=SchedulerConfig(
            max_num_seqs=case["sequences"], max_num_batched_tokens=case["tokens"], max_model_len=LONGEST,
            enable_chunked_prefill=True, is_encoder_decoder=False, async_scheduling=bool(case["lag"]),
            scheduler_reserve_full_isl=case["whole_prompt"],
        ),
        device_config=DeviceConfig("cpu"),
    )  # fmt: skip
    cache.num_gpu_blocks = case["blocks"]
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    kinds = KVCacheConfig(case["blocks"], [], [KVCacheGroupSpec(["layer"], spec)])
    kind = AsyncScheduler if case["lag"] else Scheduler
    return kind(
        vllm_config=config, kv_cache_config=kinds, structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK, hash_block_size=BLOCK, log_stats=False,
    )  # fmt: skip


class Clients:
    """Sends each request when it is due and a client is free; the engine sees it `delay` later."""

    def __init__(self, case: dict) -> None:
        self.case, self.number, self.coming = case, 0, deque()
        chance = random.Random(7)
        self.shared = [chance.randrange(VOCABULARY) for _ in range(case["prefix"])]
        self.chance = chance
        self.hasher = get_request_block_hasher(BLOCK, get_hash_fn_by_name("sha256")) if case["caching"] else None
        for _ in range(min(case["at_once"] or len(case["lengths"]), len(case["lengths"]))):
            self.answered(0.0)

    def answered(self, now: float) -> None:
        """A client is free."""
        if self.number == len(self.case["lengths"]):
            return
        prompt, answer = self.case["lengths"][self.number]
        ids = (self.shared + [self.chance.randrange(VOCABULARY) for _ in range(prompt)])[:prompt]
        sampling = SamplingParams(max_tokens=answer, ignore_eos=True)
        sampling.update_from_generation_config({}, 2)
        request = Request(
            request_id=str(self.number), prompt_token_ids=ids, sampling_params=sampling, pooling_params=None,
            block_hasher=self.hasher,
        )  # fmt: skip
        at = max(now, self.case["due"][self.number]) + self.case["delay"]
        self.number += 1
        self.coming.append((at, request))


def steps(case: dict, folder: str) -> dict:
    """What each step that computes anything held, and how many requests were preempted."""
    scheduler, clients = scheduler_of(case, folder), Clients(case)
    depth = 1 + case["lag"]
    began = now = 0.0
    queue: deque = deque()
    held, preempted, left = [], 0, len(case["lengths"])
    while left:
        seen = began if case["lag"] else now
        while clients.coming and clients.coming[0][0] <= seen:
            scheduler.add_request(clients.coming.popleft()[1])
        if scheduler.has_requests():
            composed = scheduler.schedule()
            tokens = dict(composed.num_scheduled_tokens)
            whole = {key for key in tokens if not scheduler.requests[key].is_prefill_chunk}
            preempted += len(composed.preempted_req_ids or ())
            queue.append((composed, tokens, whole))
            if tokens:
                held.append(sorted([int(key), count] for key, count in tokens.items()))
            if len(queue) == 1:
                began = now
            if len(queue) < depth and (tokens or scheduler.has_requests()):
                continue
        elif not queue:
            began = now = max(now, clients.coming[0][0])
            continue
        composed, tokens, whole = queue.popleft()
        now += bool(tokens)
        began = now
        ids = list(tokens)
        sampled = [[11] if key in whole else [] for key in ids]
        answer = ModelRunnerOutput(
            req_ids=ids, req_id_to_index={key: index for index, key in enumerate(ids)}, sampled_token_ids=sampled
        )
        outputs = scheduler.update_from_output(composed, answer)
        for each in (output for group in outputs.values() for output in group.outputs):
            if each.finish_reason is not None:
                left -= 1
                clients.answered(now)
    return {"name": case["name"], "steps": held, "preempted": preempted}


def main() -> None:
    """All cases, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(TOY))
        init_none_hash(get_hash_fn_by_name("sha256"))
        for case in json.loads(Path(sys.argv[1]).read_text()):
            print(json.dumps(steps(case, folder)), flush=True)


if __name__ == "__main__":
    main()
