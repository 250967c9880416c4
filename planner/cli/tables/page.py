"""Lines that a narrow terminal can show: what does not fit goes on below where it began."""

from __future__ import annotations

import os
import textwrap

from rich.console import Console
from rich.text import Text

from passes.record import dataclass

#: In front of what goes on below a line's head.
INDENT = " " * 11
#: Below so many columns, figures that stand in columns stand below each other.
_NARROW = 100
#: The narrowest that is filled; what is narrower is left to the terminal.
_LEAST = 40


@dataclass(frozen=True)
class Page:
    """A console, filled to its width where it has one: a terminal's, or that of COLUMNS; a pipe has none."""

    console: Console

    @property
    def width(self) -> int | None:
        """Columns; None without end."""
        known = self.console.is_terminal or "COLUMNS" in os.environ
        return max(self.console.width, _LEAST) if known else None

    @property
    def narrow(self) -> bool:
        """Whether there is no room for columns of figures."""
        return self.width is not None and self.width < _NARROW

    def line(self, head: str, text: str | Text = "", style: str = "") -> None:
        """Print text behind a head; what goes beyond the width begins below the text."""
        body = text.copy() if isinstance(text, Text) else Text(text)
        if style:
            body.stylize(style)
        wrapped = [] if self.width is None else list(body.wrap(self.console, self.width - len(head), no_wrap=False))
        for number, part in enumerate(wrapped or [body]):
            lead = head if number == 0 else " " * len(head)
            whole = Text(lead) + part
            whole.rstrip()
            self.console.print(whole, soft_wrap=True)

    def blank(self) -> None:
        """Print an empty line."""
        self.console.print()


def filled(text: str, width: int | None) -> str:
    """Fill the lines of plain text to a width; what goes on is set in by two columns. Words, and so paths, stay whole."""
    if width is None:
        return text
    return "\n".join(_filled(line, width) for line in text.splitlines())


def _filled(line: str, width: int) -> str:
    set_in = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(
        line.strip(), width, initial_indent=set_in, subsequent_indent=f"{set_in}  ", break_long_words=False, break_on_hyphens=False
    )  # fmt: skip
