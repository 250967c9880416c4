"""From the name a person writes to a model of the catalog: organisation optional, case, spaces, dashes and dots ignored."""

from __future__ import annotations

from passes.ir import catalog
from passes.reason import unknown_name


def fold(name: str) -> str:
    """A name reduced to lower-case letters, digits and inner dots."""
    return "".join(char for char in name.lower() if char.isalnum() or char == ".")


def resolve_name(name: str) -> str:
    """The catalog id that a name means. Raises InputError with the nearest names."""
    known = catalog.ids()
    if name in known:
        return name
    wanted = fold(name)
    for candidate in known:
        if fold(candidate) == wanted or fold(candidate.split("/", 1)[1]) == wanted:
            return candidate
    raise unknown_name(
        "model", name, known, remedy="Give a folder, a .gguf file, a Hub id, or a name from `optimize models`."
    )
