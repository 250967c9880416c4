"""Reads the `quantization_config` of tools whose checkpoints are read and never written here."""
