"""Quantizes: one format, several under a budget of bits, EXL2, what an engine does while loading."""
