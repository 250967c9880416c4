"""ExLlamaV2 on a job file: `python run_exllamav2.py JOB`. Runs in ExLlamaV2's own Python; imports nothing of tightfit.

Loads a model as the launch files say, finds how many tokens of cache the first card holds beside it, and answers requests through
ExLlamaV2's own generator. The job names the file that the findings go to.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAGE = 256


def main(job_file: str) -> None:
    """Do everything in order: the model, the largest cache, the asked one, the load."""
    import exllamav2
    import torch
    from exllamav2 import ExLlamaV2, ExLlamaV2Config, ExLlamaV2Tokenizer, __version__
    from exllamav2.attn import has_flash_attn_with_paged
    from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob, ExLlamaV2Sampler

    job = json.loads(Path(job_file).read_text())
    mode = job["cache_mode"]
    kind = getattr(exllamav2, "ExLlamaV2Cache" if mode == "FP16" else f"ExLlamaV2Cache_{mode}")
    began = time.perf_counter()
    config = ExLlamaV2Config(job["model"])
    config.max_seq_len, config.max_input_len = job["max_seq_len"], job["chunk_size"]
    config.max_attention_size = job["chunk_size"] ** 2
    model = ExLlamaV2(config)
    kv_tokens, cache = None, None
    if job["cards"] > 1:
        cache = kind(model, max_seq_len=job["cache_size"], lazy=True)
        model.load_autosplit(cache)
    else:
        model.load()

    if cache is None:
        kv_tokens = tokens_held(model, kind, job["chunk_size"], job["search_tokens"])
        if kv_tokens < job["cache_size"]:
            Path(job["out"]).write_text(json.dumps({"version": __version__, "kv_tokens": kv_tokens}))
            return
        cache = kind(model, max_seq_len=job["cache_size"])
    paged = bool(has_flash_attn_with_paged)
    clients = job["concurrency"] if paged else 1
    generator = ExLlamaV2DynamicGenerator(
        model, cache, ExLlamaV2Tokenizer(config), max_batch_size=clients, max_chunk_size=job["chunk_size"], paged=paged
    )
    greedy = ExLlamaV2Sampler.Settings.greedy()

    def request(output_tokens: int) -> Any:
        prompt = torch.randint(100, 900, (1, job["input_tokens"]))
        return ExLlamaV2DynamicJob(input_ids=prompt, max_new_tokens=output_tokens, gen_settings=greedy)

    answer_all(generator, lambda: request(8), clients, clients)
    ready = time.perf_counter()
    requests = job["requests"] * clients // job["concurrency"]
    answers, failed = answer_all(generator, lambda: request(job["output_tokens"]), requests, clients)
    found = {
        "version": __version__, "kv_tokens": kv_tokens, "start_seconds": ready - began, "paged": paged, "clients": clients,
        "requests": requests, "seconds": time.perf_counter() - ready, "answers": answers, "failed": failed,
    }  # fmt: skip
    Path(job["out"]).write_text(json.dumps(found))


def tokens_held(model: Any, kind: Any, chunk: int, most: int) -> int:
    """Return the tokens of the largest cache of a kind, up to `most`, that lets the model read a chunk of a prompt."""
    import torch

    def read_into(pages: int) -> None:
        """Read a prompt into a cache of so many pages."""
        held = kind(model, max_seq_len=pages * PAGE)
        length = min(pages * PAGE, chunk)
        model.forward(torch.randint(100, 900, (1, length)), held, preprocess_only=True)
        torch.cuda.synchronize()

    def fits(pages: int) -> bool:
        """Return whether that can be done; what the try before it took is given back first."""
        free()
        try:
            read_into(pages)
        except torch.cuda.OutOfMemoryError:
            return False
        return True

    def free() -> None:
        gc.collect()
        torch.cuda.empty_cache()

    held = PAGE * largest(fits, most // PAGE)
    free()
    return held


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to `most` that fits, to one part in 500; 0 where none does."""
    low, high = 0, most + 1
    while high - low > max(1, low // 500):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def answer_all(
    generator: Any, request: Callable[[], Any], requests: int, clients: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Send so many requests, each when one before it is answered, `clients` at a time; return their times, and what failed."""
    sent: dict[Any, float] = {}
    first: dict[Any, float] = {}
    answers: list[dict[str, Any]] = []
    failed: list[str] = []

    def send() -> None:
        job = request()
        sent[job] = time.perf_counter()
        generator.enqueue(job)

    for _ in range(min(clients, requests)):
        send()
    while generator.num_remaining_jobs():
        for result in generator.iterate():
            now, job = time.perf_counter(), result["job"]
            if result["stage"] == "streaming":
                first.setdefault(job, now)
            if not result["eos"]:
                continue
            if job in first:
                times = {"ttft_s": first[job] - sent[job], "rest_s": now - first[job]}
                answers.append(times | {"tokens": result["new_tokens"], "text": result["full_completion"]})
            else:
                failed.append(str(result["stage"]))
            if len(sent) < requests:
                send()
    return answers, failed


if __name__ == "__main__":
    main(sys.argv[1])
