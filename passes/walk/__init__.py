"""Walks over a model's blocks and stores their matrices by an algorithm."""
