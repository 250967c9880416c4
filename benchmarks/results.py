"""What benchmarks found, kept beside what it was found with, so that pages are filled from it: `benchmarks/data/results/NAME.json`.

    python -m benchmarks.results          writes the kept tables into the pages of docs/ again

A page holds a table between `<!-- results: NAME -->` and `<!-- end of results -->`. Its benchmark, run with `--keep`, keeps the table and
a digest of each file that its figures depend on (fitted constants, rows), by which the site says where those have changed since.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from passes.record import dataclass

ROOT = Path(__file__).parent.parent
KEPT = Path(__file__).parent / "data" / "results"
DOCS = ROOT / "docs"
_PLACE = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n)(?P<text>.*?)(<!-- end of results -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Result:
    """A kept result: the command that makes it, sha256 by file of what it was found with, and its tables as Markdown."""

    made_by: str
    found_with: dict[str, str]
    text: str

    @property
    def changed(self) -> tuple[str, ...]:
        """Return the files that have changed, or gone, since."""
        return tuple(name for name, digest in self.found_with.items() if _digest(ROOT / name) != digest)


def keep(name: str, made_by: str, files: Iterable[Path], text: str) -> None:
    """Keep what a benchmark found with some files of this repository."""
    found_with = {str(file.relative_to(ROOT)): _digest(file) for file in files}
    document = {"made_by": made_by, "found_with": found_with, "text": text.strip("\n")}
    (KEPT / f"{name}.json").write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def kept(name: str) -> Result:
    """Read a kept result. Raises FileNotFoundError where no benchmark kept it."""
    return Result(**json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8")))


def filled(page: str) -> str:
    """Return a page with the kept tables at their places."""
    return _PLACE.sub(lambda place: f"{place[1]}\n{kept(place['name']).text}\n\n{place[4]}", page)


def told(page: str) -> str:
    """Return a page of the site: its tables, and below each how it is made, and what has changed since it was."""
    return _PLACE.sub(lambda place: f"\n{kept(place['name']).text}\n\n{_origin(kept(place['name']))}\n", page)


def _origin(result: Result) -> str:
    changed = ", ".join(f"`{name}`" for name in result.changed)
    since = f" Changed since it was made: {changed}." if changed else ""
    return f"*Made by `{result.made_by}`.{since}*"


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def main() -> None:
    """Write the tables into the pages."""
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if (whole := filled(text)) != text:
            path.write_text(whole, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
