"""GPTQModel on a job file: `python gptqmodel.py JOB`. Runs in GPTQModel's own Python; imports nothing of tightfit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Run as a script, this folder would come first on the path and hide the library behind this file's name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]


def main(job_file: str) -> None:
    """Run one `GPTQModel.quantize` with the job's config; the checkpoint goes to the job's `out`."""
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD
    from safetensors.torch import load_file

    job = json.loads(Path(job_file).read_text())
    options = dict(job["options"])
    method, form = METHOD(options.pop("method")), FORMAT(options.pop("format"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPTQModel.load(job["source"], QuantizeConfig(**options, method=method, format=form, device=device))
    tokens = load_file(job["tokens"])["input_ids"]
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens.tolist()], batch_size=1)
    model.save(job["out"])


if __name__ == "__main__":
    main(sys.argv[1])
