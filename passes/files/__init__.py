"""Reads and writes files: checkpoints, whole or not at all, one run at a time, with clear errors."""
