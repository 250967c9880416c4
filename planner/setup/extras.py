"""Which extra of tightfit brings a package, as the installed package's own metadata says."""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

#: The extra without which no weights are worked on.
APPLY = "apply"
#: Modules whose name is not that of what brings them, for where that is not installed and cannot be asked.
_BROUGHT_BY = {"psutil": "accelerate", "tokenizers": "transformers"}


@cache
def extras() -> dict[str, tuple[str, ...]]:
    """Return the packages of each extra, as PyPI spells them; nothing where tightfit runs without being installed."""
    try:
        said = requires("tightfit") or []
    except PackageNotFoundError:
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for requirement in said:
        match = re.match(r"([\w.-]+).*;\s*extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if match:
            found[match[2]] = (*found.get(match[2], ()), match[1])
    return found


def extra_with(module: str) -> str | None:
    """Return the extra that brings a module; None where none is known to."""
    top = module.partition(".")[0]
    wanted = _spelled(_BROUGHT_BY.get(top, top))
    holding = (name for name, packages in extras().items() if wanted in map(_spelled, packages))
    return next(holding, None)


def require(*modules: str) -> None:
    """Raise ModuleNotFoundError for the first of some modules that is not installed, before any work is done without it."""
    for name in modules:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def install(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'tightfit[{extra}]'"


def installed(package: str) -> str | None:
    """Return the version of a package that is here; None where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _spelled(package: str) -> str:
    """A package's or module's name without what its spellings differ in."""
    return re.sub(r"[-_.]+", "-", package).lower()
