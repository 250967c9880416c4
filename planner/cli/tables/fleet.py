"""What became of several specs or plans that were applied together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from planner.cli.tables.parts import tick

if TYPE_CHECKING:
    from planner.fleet import Fleet, Member


def print_member(console: Console, member: Member) -> None:
    """Print that one has ended."""
    console.print(f"  {member.what} ended after {member.seconds:.0f} s", style="dim")


def print_fleet(console: Console, fleet: Fleet) -> None:
    """Print what became of each, and how many are made."""
    for member in fleet.members:
        where = f" → {member.out}" if member.exit_code in (0, 4) else ""
        console.print(f"  {tick(member.made)} [bold]{escape(member.what)}[/]{escape(where)}", markup=True)
        console.print(f"      {member.said}" + (f" ({member.remedy})" if member.remedy else ""))
    made = sum(member.made for member in fleet.members)
    console.print(f"  {made} of {len(fleet.members)} made", style="bold")
