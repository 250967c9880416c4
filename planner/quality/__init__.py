"""Predicts the loss of quality of a chain of passes, or measures it on a little text."""
