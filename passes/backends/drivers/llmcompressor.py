"""llm-compressor on a job file: `python llmcompressor.py JOB`. Runs in llm-compressor's own Python; imports nothing of tightfit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Run as a script, this folder would come first on the path and hide the library behind this file's name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]


def main(job_file: str) -> None:
    """Run one `oneshot` with the job's recipe; the compressed checkpoint goes to the job's `out`."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job = json.loads(Path(job_file).read_text())
    options = job["options"]
    groups, ignore = {"group_0": options["group"]}, options["ignore"]
    if options["method"] == "rtn":
        recipe = [QuantizationModifier(config_groups=groups, ignore=ignore)]
    elif options["method"] == "awq":
        from llmcompressor.modifiers.awq import AWQModifier

        recipe = [AWQModifier(config_groups=groups, ignore=ignore)]
    else:
        recipe = [GPTQModifier(config_groups=groups, ignore=ignore, dampening_frac=options["damping"])]
    if options["method"] == "smoothquant":
        from llmcompressor.modifiers.smoothquant import SmoothQuantModifier

        recipe.insert(0, SmoothQuantModifier(smoothing_strength=0.5))
    model = AutoModelForCausalLM.from_pretrained(job["source"], dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(job["source"])
    tokens = load_file(job["tokens"])["input_ids"]
    rows = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": tokens.ne(-1).long().tolist()})
    oneshot(
        model=model, tokenizer=tokenizer, dataset=rows, recipe=recipe, max_seq_length=tokens.shape[1],
        num_calibration_samples=len(tokens), shuffle_calibration_samples=False,
    )  # fmt: skip
    model.save_pretrained(job["out"], save_compressed=True)


if __name__ == "__main__":
    main(sys.argv[1])
