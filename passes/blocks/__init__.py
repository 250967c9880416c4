"""Runs a transformers model one block at a time."""
