"""A view as one HTML file that needs nothing beside it: charts are SVG written here, style and script stand inside.

Hand-written SVG in place of a chart library: the page weighs a tenth of Vega alone, prints, and shows every figure without a script; what
the script adds is tips, the filter and the arrow keys. jinja2 writes it with every value escaped.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from planner.report.view import View
from planner.version import VERSION


def page(view: View) -> str:
    """Write a view as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("planner.report", "page"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style, script = _text("page.css"), _text("page.js")
    return environment.get_template("page.html.j2").render(
        view=view,
        version=VERSION,
        style=style,
        script=script,
        style_digest=_digest(style),
        script_digest=_digest(script),
    )


def _text(name: str) -> str:
    return files("planner.report").joinpath("page", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """sha256 as a content security policy names what may run: nothing else does, and nothing is loaded."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
