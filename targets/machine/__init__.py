"""Looks at this machine and measures it."""
