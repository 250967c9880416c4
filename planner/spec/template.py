"""The spec that `optimize init` writes."""

TEMPLATE = """\
# What to compile. A Hub id, a name of the catalog (optimize models), a folder, or a .gguf file.
model: Qwen/Qwen2.5-7B-Instruct

# Where it must run. `optimize targets` lists the cards; `auto` is this machine, 24GB a generic card of that size.
target: { gpu: rtx-4090, count: 1, reserve: 0.5 GiB }

# auto weighs every engine that runs on the card; or a name: vllm, vllm-cpu.
engine: auto

# What the served model must hold: the longest sequence, requests at once, and a typical request.
workload: { context: 8192, concurrency: 4, input_tokens: 2000, output_tokens: 400 }

# What a plan must meet, and what to maximise among those that do: quality, speed, context or size.
goals:
  ttft: 2 s
  decode: 20 tok/s
  quality: { max_perplexity_increase: 5% }
  prefer: quality

# Text that calibrates the quantization: self (the model writes it), a file, or a Hub data set.
calibration: { dataset: self, samples: 128, length: 1024 }
"""
