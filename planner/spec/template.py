"""The spec that `optimize init` writes, with places for its answers (`str.format`)."""

TEMPLATE = """\
# What to compile. A Hub id, a name of the catalog (optimize models), a folder, or a .gguf file.
model: {model}

# Where it must run. `optimize targets` lists the cards; `auto` is this machine, 24GB a generic card of that size.
target: {{ gpu: {gpu}, count: {count}, reserve: 0.5 GiB }}

# auto weighs every engine that runs on the card; or a name: vllm, vllm-cpu.
engine: auto

# What the served model must hold: the longest sequence, requests at once, and a typical request.
workload: {{ context: {context}, concurrency: {concurrency}, {lengths}{prefix} }}

# What a plan must meet, and what to maximise among those that do: quality, speed, throughput, cost,
# context or size.
# {why}
goals:
{goals}

# Text that calibrates the quantization: self (the model writes it), a file, or a Hub data set.
calibration: {{ dataset: self, samples: 128, length: 1024 }}
"""
