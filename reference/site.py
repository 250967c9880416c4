"""What mkdocs calls while it builds the site (`mkdocs.yml`): pages of reference are made, answers put below commands."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from benchmarks.results import told
from reference import printed
from reference.pages import pages

#: Pages with the answers of their commands.
_ANSWERED: dict[str, str] = {}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that the code makes, and run the commands of those that show what they print."""
    _ANSWERED.update(
        printed.answered({
            file.src_uri: file.content_string
            for file in files.documentation_pages()
            if file.src_uri.startswith(printed.PAGES)
        })
    )  # fmt: skip
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put below the commands of a page what they print, and in its places what benchmarks found."""
    return told(_ANSWERED.get(page.file.src_uri, markdown))
