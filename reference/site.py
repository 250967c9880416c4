"""What mkdocs calls while it builds the site (`mkdocs.yml`): the pages of reference are made, links to the code lead to no page."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from reference.pages import pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that the code makes."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
