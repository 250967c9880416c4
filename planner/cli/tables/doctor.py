"""What a machine can do, as people read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from planner.cli.tables.page import Page
from planner.figures import show

if TYPE_CHECKING:
    from planner.setup.doctor import Machine, Tool


def print_machine(console: Console, machine: Machine) -> None:
    """Print what was found, then which commands work, then what to install."""
    page = Page(console)
    page.blank()
    for head, said in _found(machine):
        page.line(f"  {head:10s} ", said)
    page.blank()
    for command in machine.commands:
        mark = Text("✓ ", "green") if command.works else Text("✗ ", "red")
        needs = f": {command.needs}" if command.needs else ""
        page.line("  ", mark + Text(f"{command.names}{needs}"))
        if command.remedy:
            page.line("      ", command.remedy, "bold")
    page.blank()


def _found(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "tightfit", f"{machine.tightfit}, Python {machine.python} ({machine.executable})"
    yield "System", f"{machine.system}; {machine.processor}, {machine.cores} cores"
    free = machine.memory_available_bytes
    yield "Memory", show(machine.memory_bytes, "B") + ("" if free is None else f", {show(free, 'B')} free")
    disk = f"{show(machine.disk_free_bytes, 'B')} free here"
    yield "Disk", f"{disk}, {show(machine.hub_free_bytes, 'B')} for models of the Hub ({machine.hub_folder})"
    cards = [f"{c.name}, {show(c.free_bytes, 'B')} of {show(c.total_bytes, 'B')} free" for c in machine.cards]
    yield "Cards", "; ".join(cards) or "none that NVML sees"
    torch = machine.torch
    built = f"built for CUDA {torch.cuda}, uses {torch.cards} cards" if torch.cuda else "built for the processor"
    yield "torch", f"{torch.version}, {built}" if torch.version else "not installed"
    if machine.packages:
        yield "apply", ", ".join(f"{p.name} {p.version or 'missing'}" for p in machine.packages)
    for number, engine in enumerate(machine.engines):
        yield "Engines" if not number else "", _tool(engine)
    for number, tool in enumerate(machine.tools):
        yield "Tools" if not number else "", _tool(tool)


def _tool(tool: Tool) -> str:
    if tool.version is None:
        return f"{tool.name}: not found; {tool.remedy}"
    return f"{tool.name} {tool.version}{f' ({tool.build})' if tool.build else ''} in {tool.python}"
