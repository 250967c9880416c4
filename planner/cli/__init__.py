"""Reads arguments, calls, prints. No logic."""

import os

# Before pydantic is loaded: looking for plugins reads the metadata of every installed distribution.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
