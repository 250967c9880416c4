"""Describes vLLM, on cards and on processors."""
