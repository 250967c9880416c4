"""AutoRound on a job file: `python autoround.py JOB`. Runs in AutoRound's own Python; imports nothing of tightfit."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(job_file: str) -> None:
    """Run one `AutoRound.quantize_and_save`; its own subfolder is moved up to the job's `out`."""
    import torch
    from auto_round import AutoRound
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job = json.loads(Path(job_file).read_text())
    options, out = dict(job["options"]), Path(job["out"])
    form = options.pop("format")
    model = AutoModelForCausalLM.from_pretrained(job["source"], dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(job["source"])
    tokens = load_file(job["tokens"])["input_ids"]
    rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in tokens]
    device = "auto" if torch.cuda.is_available() else "cpu"
    rounder = AutoRound(
        model, tokenizer, scheme="W4A16", dataset=rows, nsamples=len(rows), seqlen=tokens.shape[1], device_map=device, **options
    )  # fmt: skip
    part = out.with_name(out.name + ".part")
    rounder.quantize_and_save(str(part), format=form)
    next(iter(sorted(part.rglob("config.json")))).parent.rename(out)


if __name__ == "__main__":
    main(sys.argv[1])
