"""Reads what a user asks for."""
