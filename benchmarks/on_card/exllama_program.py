"""ExLlamaV2 on an EXL2 result: `python exllama_program.py RESULT REFERENCE`. Runs in ExLlamaV2's Python, without tightfit.

Prints one JSON object a part: every matrix beside the reference, the logits beside the reference's, tokens a second with each cache.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

_WARM, _TIMED, _PROMPT, _CACHE = 32, 256, 64, 1024


def say(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def matrices(folder: str, reference: str) -> None:
    """Each matrix alone, as its kernels decode it, against the reference's fp16 numbers."""
    import torch
    from exllamav2 import ext
    from exllamav2.ext import exllamav2_ext, none_tensor
    from safetensors import safe_open

    parts = ("q_weight", "q_invperm", "q_scale", "q_scale_max", "q_groups")
    stored: dict[str, Path] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            stored |= {name: path for name in file.keys() if name.rpartition(".")[2] in parts}  # noqa: SIM118
    equal = total = 0
    furthest, share, worst = 0.0, 1.0, ""
    with safe_open(reference, framework="pt") as ours:
        names = sorted(name for name in ours.keys() if name.endswith(".weight"))  # noqa: SIM118
        for name in names:
            module = name.removesuffix(".weight")
            tensors = {}
            for part in parts:
                with safe_open(stored[f"{module}.{part}"], framework="pt", device="cuda:0") as file:
                    tensors[part] = file.get_tensor(f"{module}.{part}")
            tensors["q_perm"] = torch.argsort(tensors["q_invperm"]).to(torch.int)
            rows, columns = len(tensors["q_invperm"]), tensors["q_weight"].shape[1]
            handle = ext.make_q_matrix(tensors, none_tensor)
            theirs = torch.empty((rows, columns), dtype=torch.half, device="cuda:0")
            exllamav2_ext.reconstruct(handle, theirs)
            torch.cuda.synchronize()
            expected = ours.get_tensor(name).to("cuda:0").T
            theirs = theirs[:, : expected.shape[1]]
            same = float((theirs == expected).float().mean())
            apart = float((theirs.float() - expected.float()).abs().max())
            exllamav2_ext.free_q_matrix(handle)
            equal, total = equal + (same == 1.0), total + 1
            furthest = max(furthest, apart)
            if same < share:
                share, worst = same, name
    say(matrices=total, equal_matrices=equal, furthest=furthest, least_equal_share=share, least_equal=worst)


def loaded(folder: str, **settings: object) -> object:
    from exllamav2 import ExLlamaV2, ExLlamaV2Config

    config = ExLlamaV2Config(folder)
    config.max_seq_len = _CACHE
    config.max_input_len = _CACHE
    for name, value in settings.items():
        setattr(config, name, value)
    model = ExLlamaV2(config)
    model.load()
    return model


def logits(folder: str, reference: str) -> None:
    """KL(reference ‖ theirs) in nats and how often the likeliest token is the same, with matrix products for attention.

    Of its other path (torch's fused attention, taken where flash-attn is missing) the same, for what it is worth.
    """
    import torch
    from safetensors import safe_open

    with safe_open(reference, framework="pt") as file:
        ids, expected = file.get_tensor("ids"), file.get_tensor("logits").cuda()
    for suffix, settings in (("", {"no_sdpa": True}), ("_sdpa", {"no_sdpa": False})):
        model = loaded(folder, no_flash_attn=True, no_xformers=True, **settings)
        found = []
        with torch.inference_mode():
            for row in ids:
                found.append(model.forward(row[None])[0].float())  # type: ignore[attr-defined]
        theirs = torch.stack(found)[..., : expected.shape[-1]].to(expected.device)
        p, q = torch.log_softmax(expected, -1), torch.log_softmax(theirs, -1)
        divergence = (p.exp() * (p - q)).sum(-1)
        same = (expected.argmax(-1) == theirs.argmax(-1)).float().mean()
        say(**{
            f"kl{suffix}": float(divergence.mean()), f"kl_most{suffix}": float(divergence.max()), f"top1{suffix}": float(same)
        })  # fmt: skip
        model.unload()  # type: ignore[attr-defined]


def speeds(folder: str) -> None:
    """Tokens a second of one sequence, greedy, with each kind of cache."""
    import exllamav2
    import torch

    model = loaded(folder)
    kinds = {"FP16": "ExLlamaV2Cache", "Q8": "ExLlamaV2Cache_Q8", "Q6": "ExLlamaV2Cache_Q6", "Q4": "ExLlamaV2Cache_Q4"}
    found = {}
    for name, kind in kinds.items():
        cache = getattr(exllamav2, kind)(model, max_seq_len=_CACHE)
        ids = torch.arange(1000, 1000 + _PROMPT)[None]
        with torch.inference_mode():
            token = _greedy(model.forward(ids, cache, last_id_only=True))  # type: ignore[attr-defined]
            for step in range(_WARM + _TIMED):
                if step == _WARM:
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                token = _greedy(model.forward(token, cache))  # type: ignore[attr-defined]
            torch.cuda.synchronize()
        found[name] = round(_TIMED / (time.perf_counter() - began), 1)
        say(tok_s=found)


def _greedy(logits: object) -> object:
    return logits[:, -1].argmax(-1, keepdim=True).cpu()  # type: ignore[index]


def main(folder: str, reference: str) -> None:
    sys.path[:] = sys.path[1:]  # this file's folder, whose names would hide others
    matrices(folder, reference)
    logits(folder, reference)
    speeds(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
