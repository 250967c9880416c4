"""A view as one HTML file that needs nothing beside it: charts are SVG written here, style and script stand inside.

Hand-written SVG in place of a chart library: the page weighs a tenth of Vega alone, prints, and shows every figure without a script; what
the script adds is tips, the filter and the arrow keys. jinja2 writes it with every value escaped.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.version import VERSION

if TYPE_CHECKING:
    from jinja2 import Environment

    from planner.report.view import View


def page(view: View) -> str:
    """Write a view as HTML."""
    style, script = text("page.css"), text("page.js")
    return render(
        "page.html.j2", view=view, version=VERSION, style=style, script=script,
        style_digest=digest(style), script_digest=digest(script),
    )  # fmt: skip


def render(template: str, **values: Any) -> str:
    """Write one of the templates beside this module with its values, every one escaped."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    return Environment(
        loader=PackageLoader("planner.report", "page"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def text(name: str) -> str:
    """Return a style or a script beside this module."""
    return (Path(__file__).parent / "page" / name).read_text(encoding="utf-8")


def digest(code: str) -> str:
    """Return the sha256 by which a content security policy names what may run: nothing else does, and nothing is loaded."""
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
