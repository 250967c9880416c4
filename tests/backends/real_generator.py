"""Runs inside the tools' environment: what ExLlamaV2's own generator computes in each iteration of a workload, as JSON lines.

    python real_generator.py CASES.json   [{"name", "chunk", "sequences", "pages", "due", "lengths": [[prompt, answer], …]}, …]
                                          →  {"name", "iterations": [[[[tokens, before], …], decoding, context], …]} each

Its own `ExLlamaV2DynamicGenerator` and jobs, with a model that answers zeros and writes down what it is asked: no weights, no card, no
compiled extension (its `count_match` looks for pages to copy from; random prompts have none). `due`: the iteration that a job is
enqueued before.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

_extension = ModuleType("exllamav2_ext")
_extension.count_match = lambda *_: 0
sys.modules["exllamav2_ext"] = _extension

import torch  # noqa: E402
from exllamav2.generator import dynamic  # noqa: E402

VOCABULARY = 1024
LONGEST = 65536


class Recorder:
    """A model that computes nothing: forward passes of a prompt's chunk, and of one token of each job that decodes."""

    def __init__(self, chunk: int, sequences: int) -> None:
        self.config = SimpleNamespace(
            max_seq_len=LONGEST, max_input_len=chunk, max_batch_size=sequences, vocab_size=VOCABULARY, no_flash_attn=False,
            arch=SimpleNamespace(lm=SimpleNamespace(mrope=False)),
        )  # fmt: skip
        self.chunks: list[list[int]] = []
        self.decoding = self.context = 0

    def forward_chunk(
        self, input_ids: torch.Tensor, attn_params: object, preprocess_only: bool = False, **_: object
    ) -> object:
        cached = attn_params.cache_seqlens
        if preprocess_only:
            self.chunks.append([input_ids.shape[-1], int(cached[0])])
            return None
        self.decoding, self.context = input_ids.shape[0], int(cached.sum())
        return {"logits": torch.zeros(input_ids.shape[0], 1, VOCABULARY)}

    def taken(self) -> list[object]:
        """What was asked since the last time."""
        out = [self.chunks, self.decoding, self.context]
        self.chunks, self.decoding, self.context = [], 0, 0
        return out


def iterations(case: dict) -> dict:
    """What each iteration that computes anything held."""
    chance = random.Random(7)
    model = Recorder(case["chunk"], case["sequences"])
    cache = SimpleNamespace(batch_size=1, max_seq_len=256 * case["pages"], all_tensors=list)
    pieces = SimpleNamespace(get_id_to_piece_list=lambda *_: ["x"] * VOCABULARY)
    generator = dynamic.ExLlamaV2DynamicGenerator(
        model, cache, pieces, max_batch_size=case["sequences"], max_sampling_threads=1, filter_background_eval=False
    )
    coming = sorted(zip(case["due"], range(len(case["lengths"])), case["lengths"], strict=True))
    held, number = [], 0
    while coming or generator.num_remaining_jobs():
        while coming and coming[0][0] <= number:
            _, _, (prompt, answer) = coming.pop(0)
            ids = torch.tensor([[chance.randrange(VOCABULARY) for _ in range(prompt)]])
            generator.enqueue(dynamic.ExLlamaV2DynamicJob(ids, max_new_tokens=answer))
        generator.iterate()
        number += 1
        asked = model.taken()
        if asked[0] or asked[1]:
            held.append(asked)
    return {"name": case["name"], "iterations": held}


def main() -> None:
    """All cases, one after the other."""
    chance = random.Random(1)
    dynamic.assert_paged_attn = lambda: None
    # any token does: what is computed does not depend on it, and a page that repeats another one is shared
    dynamic.ExLlamaV2Sampler.sample = lambda *_, **__: (
        torch.tensor([[chance.randrange(VOCABULARY)]]),
        None,
        None,
        None,
        False,
    )
    dynamic.ExLlamaV2DynamicGenerator.defrag_cache = lambda _: None  # moves pages that are there
    for case in json.loads(Path(sys.argv[1]).read_text()):
        print(json.dumps(iterations(case)), flush=True)


if __name__ == "__main__":
    main()
