"""Structural passes: what can be taken out of a model."""
