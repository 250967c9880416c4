"""Predicts how fast an engine prefills and decodes a model on a card."""
