"""Describes ExLlamaV2 and ExLlamaV3, served by TabbyAPI."""
