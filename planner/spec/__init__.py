"""Reads what a user asks for. `load_spec` reads a file; it is imported when it is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.spec.parse import load_spec

__all__ = ["load_spec"]


def __getattr__(name: str) -> Any:
    """Import `load_spec` when it is first used: parts of a spec are read without its parser."""
    if name != "load_spec":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from planner.spec.parse import load_spec

    return load_spec
