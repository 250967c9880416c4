"""compressed-tensors checkpoints: `pack-quantized`, `int-quantized` and `float-quantized` matrices and their config.

The package `compressed-tensors` does its own packing and owns the schema; here stand the exact descriptions and the mapping
from our grid. Orientation `[N, K]`; scales in the model's dtype (llm-compressor writes them so).
"""
