"""Starts and stops an engine's server, and measures it over its API."""
