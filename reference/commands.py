"""The commands of a page: what stands behind `$` in its blocks, and the files that the page writes for them.

A block that begins with ```` ```yaml title="tightfit.yaml" ```` is a file. Commands run in the order of their page, in one folder. Behind a
command `# exit 3` says how it ends, where not with 0; `# takes …` says what it takes that not every machine has, or longer than a test may:
such a command is not run, but read by its own parser.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

#: A block of a page: its indentation, what stands behind the marks, its lines.
BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')
_COMMAND = re.compile(r"(?P<words>.*?)(?:\s+# (?:exit (?P<exit>\d+)(?:: .+)?|takes (?P<takes>.+)|.*))?")
#: How a line in a block begins that is a command, with or without its `$`.
_PROGRAMS = re.compile(r"\s*(?:\w+=\S+ )?(?:optimize|make|python|pip|docker|kubectl|helm|launch/run\.sh)\s")


@dataclass(frozen=True, slots=True)
class File:
    """A file that a page writes."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command, how it ends, and what it takes that a test has not; None: nothing."""

    line: str
    exit_code: int
    takes: str | None

    @property
    def words(self) -> list[str]:
        """Return its words as a shell splits them."""
        return shlex.split(self.line)


def steps(page: str) -> Iterator[File | Command]:
    """Give the files and the commands of a page in their order."""
    for _, info, body in BLOCK.findall(page):
        if (title := _TITLE.search(info)) is not None:
            yield File(title[1], body)
        for line in body.replace("\\\n", " ").splitlines():
            if line.lstrip().startswith("$ "):
                yield _command(line.lstrip()[2:])


def unmarked(page: str) -> list[str]:
    """Return the lines of a page's blocks that look like commands and have no `$` in front, so that nothing runs them."""
    blocks = (body for _, info, body in BLOCK.findall(page) if info in ("", "bash", "sh", "console"))
    indented = re.findall(r"^    \S.*$", BLOCK.sub("", page), re.MULTILINE)
    return [line for line in (*"".join(blocks).splitlines(), *indented) if _PROGRAMS.match(line)]


def _command(line: str) -> Command:
    parts = _COMMAND.fullmatch(line.strip())
    assert parts is not None
    return Command(" ".join(parts["words"].split()), int(parts["exit"] or 0), parts["takes"])
