"""Text for streams that do not know all of its characters: look-alikes in ASCII, never an error."""

from __future__ import annotations

import codecs
import json
import sys
from typing import Any, TextIO

#: Of each character that is printed here; whatever else a stream does not know (in a file's name) becomes `?`.
_LOOK_ALIKES = {
    "→": "->", "←": "<-", "─": "-", "►": ">", "✓": "ok", "✗": "x", "█": "#", "░": ".", "≥": ">=", "≤": "<=", "…": "...", "×": "x", "·": "-",
    "±": "+-", "−": "-", "–": "-", "—": "-", "µ": "u", "•": "*", "━": "-", "╸": "-", "╺": "-", "│": "|",
}  # fmt: skip
_HANDLER = "tightfit-look-alikes"


def _look_alike(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(_LOOK_ALIKES.get(each, "?") for each in unknown), error.end


def print_what_can_be_printed() -> None:
    """Let stdout and stderr print look-alikes of what their encodings lack, instead of raising UnicodeEncodeError."""
    codecs.register_error(_HANDLER, _look_alike)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=_HANDLER)


def json_line(document: Any, stream: TextIO) -> str:
    """Write a document as one line for a stream: escaped where the stream does not write UTF-8 or lacks a character, so nothing is
    lost.
    """
    text = json.dumps(document, ensure_ascii=False)
    return (text if _written_in_utf8(text, stream) else json.dumps(document)) + "\n"


def _written_in_utf8(text: str, stream: TextIO) -> bool:
    try:
        text.encode("utf-8")
        return codecs.lookup(stream.encoding or "utf-8").name == "utf-8"
    except (UnicodeEncodeError, LookupError):
        return False
