"""Outside tools that make a quantization in place of the native walk: `backend: gptqmodel` in a spec's `quantize`.

A backend is a program of its own, in a Python of its own (their pins exclude each other): it gets a job file, a folder with the
dense model and the calibration tokens, and leaves a checkpoint. What it leaves is held against the same description as native
results, tensor by tensor. One module for libraries that a driver of ours calls, one for converters with a command line. The table of
them is `passes.chain.BACKENDS`.
"""
