"""The command line's application with all of its commands."""

from planner.cli import checking, commands, listings, reports, starting  # noqa: F401 (each adds its commands to the application)
from planner.cli.app import app

__all__ = ["app"]
