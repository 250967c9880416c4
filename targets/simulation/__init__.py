"""Serving under load, step by step: arrivals, an engine's scheduler, the times that its users see."""
