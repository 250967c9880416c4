"""Writes what starts an engine on a result."""
