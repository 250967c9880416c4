"""What an engine calls a storage format: its kind; of a publisher's layout that layout, of a load-time scheme that scheme."""

from __future__ import annotations

from passes.formats.format import Format


def stored_as(form: Format) -> str:
    """The name that engines' tables of readable formats go by."""
    for attribute in ("layout", "method", "scheme"):
        value = getattr(form, attribute, None)
        if isinstance(value, str) and value:
            return value
    return form.kind
