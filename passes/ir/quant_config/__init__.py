"""Reads and writes `quantization_config`, by which engines know how a checkpoint is stored."""
