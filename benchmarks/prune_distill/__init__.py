"""Pruning and distillation on SmolLM2, against stated goals."""
