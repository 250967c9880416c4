"""Tables of names that other packages may add to: passes, formats, engines, backends.

Each entry is written as `module:attribute` and imported when first asked for, so that a table costs nothing and may name modules that
import it. Another package adds a name with an entry point of the table's group:

    [project.entry-points."tightfit.passes"]
    merge_layers = "its.module:MergeLayers"
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from passes.errors import NOT_MEANT, InputError, unknown_name

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

#: What the groups of all tables begin with.
_GROUPS = "tightfit."


class Registry(Generic[T]):
    """Names to objects.

    `kind`: what messages call an entry (`pass`, `format`, `engine`). `entries`: our own names, each with `module:attribute`.
    `group`: the group of entry points under which other packages add theirs; it is read for names that `entries` lacks only, so
    an entry point cannot take the place of one of our own. `meant`: words that people write for entries.
    """

    def __init__(
        self, kind: str, entries: Mapping[str, str], group: str, meant: Mapping[str, Sequence[str]] = NOT_MEANT
    ) -> None:
        self.kind, self.group, self.meant = kind, group, meant
        self._entries = dict(entries)

    def find(self, name: str, *, remedy: str | None = None) -> T:
        """Return the object of a name, from `entries` or else from the entry points of other packages.

        `remedy`: what the error for an unknown name advises; its default lists the known names. Raises InputError with the nearest
        names for an unknown name, for one that two packages add, and for a package that cannot be imported.
        """
        place = self._entries.get(name)
        if place is not None:
            return self._import(place)
        installed = self._installed()
        if name in installed:
            return self._load(installed[name])
        known = (*self._entries, *installed)
        raise unknown_name(self.kind, name, known, remedy=remedy or f"one of {', '.join(known)}", meant=self.meant)

    def names(self, *, installed: bool = False) -> tuple[str, ...]:
        """Return our own names in the order of the table; with `installed`, those that other packages add after them."""
        return (*self._entries, *(self._installed() if installed else ()))

    def _installed(self) -> dict[str, EntryPoint]:
        """Entry points of other packages by name. Raises InputError where a name is there twice."""
        points: dict[str, EntryPoint] = {}
        for point in _entry_points(tuple(sys.path)).get(self.group, ()):
            if point.name in self._entries:
                raise self._twice(point.name, "tightfit", _package(point))
            if points.setdefault(point.name, point) != point:
                raise self._twice(point.name, _package(points[point.name]), _package(point))
        return points

    def _twice(self, name: str, first: str, second: str) -> InputError:
        message = f"the {self.kind} {name!r} is there twice: in {first} and in {second}"
        return InputError(message, remedy=f"uninstall {second}, or have it take another name in the group {self.group}")

    def _load(self, point: EntryPoint) -> T:
        try:
            return self._import(point.value)
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"the {self.kind} {point.name!r} of {_package(point)} cannot be loaded from {point.value}: {error}",
                remedy=f"install a version of {_package(point)} that goes with this one, or uninstall it",
            ) from error

    @staticmethod
    def _import(place: str) -> T:
        module, _, attribute = place.partition(":")
        entry: Any = import_module(module)
        for name in attribute.split("."):
            entry = getattr(entry, name)
        loaded: T = entry
        return loaded


@lru_cache(maxsize=1)
def _entry_points(path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """What the packages on `path` add to our tables, by group: their metadata are read once for all tables."""
    from importlib.metadata import entry_points

    points = entry_points()
    return {group: tuple(points.select(group=group)) for group in points.groups if group.startswith(_GROUPS)}


def packages() -> list[str]:
    """Return name and version of every installed package that adds a name to any table, sorted."""
    from importlib.metadata import distributions

    return sorted(
        f"{package.name} {package.version}"
        for package in distributions()
        if any(point.group.startswith(_GROUPS) for point in package.entry_points)
    )


def _package(point: EntryPoint) -> str:
    """The distribution that an entry point belongs to."""
    return point.dist.name if point.dist is not None else point.value
