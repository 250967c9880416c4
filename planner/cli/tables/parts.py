"""What several documents print alike."""

from __future__ import annotations

from planner.figures import show


def size(count: float) -> str:
    """Bytes as people read them."""
    return show(count, "B")


def tick(holds: bool) -> str:
    """The mark, as markup, of what holds or does not."""
    return "[green]✓[/]" if holds else "[red]✗[/]"
