"""The pages that are made from the code, by where they stand below `docs/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from reference import cli, documents, python, spec

PAGES: Mapping[str, Callable[[], str]] = {
    "reference/cli.md": cli.page, "reference/spec.md": spec.page, "reference/documents.md": documents.page,
    "reference/python.md": python.page,
}  # fmt: skip


def pages() -> dict[str, str]:
    """Make them all."""
    return {path: make() for path, make in PAGES.items()}
