"""Carries out a chain of passes: a job, its steps, the result held against its description."""
