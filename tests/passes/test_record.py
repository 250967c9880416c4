"""Our frozen dataclasses behave as the standard library's."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import FrozenInstanceError, field
from typing import Any

import pytest

from passes import record


def _classes(dataclass: Any) -> tuple[type, type, type, type]:
    """The same four classes, by either decorator."""

    @dataclass(frozen=True, slots=True)
    class Size:
        width: int
        height: int = 2
        note: str = field(default="", compare=False)
        seen: list[int] = field(default_factory=list, compare=False, repr=False)

        def __post_init__(self) -> None:
            if self.width < 0:
                raise ValueError("no width")

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Named:
        name: str
        count: int = 1

    @dataclass(frozen=True)
    class Base:
        name: str = "base"
        late: int = field(default=3, kw_only=True)

        def __repr__(self) -> str:
            return f"<{self.name}>"

    @dataclass(frozen=True)
    class Derived(Base):
        """Says what it is."""

        extra: float = 0.5

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Base) and other.name == self.name

        def __hash__(self) -> int:
            return hash(self.name)

    return Size, Named, Base, Derived


@dataclasses.dataclass(frozen=True, slots=True)
class Their:
    """A class that its module has, as pickle needs it."""

    value: int
    name: str = "a"


@record.dataclass(frozen=True, slots=True)
class Our:
    """The same."""

    value: int
    name: str = "a"


OUR, THEIR = _classes(record.dataclass), _classes(dataclasses.dataclass)


def _said(of: Any) -> Any:
    """What a call gives or raises, as text."""
    try:
        return repr(of())
    except (AttributeError, TypeError, ValueError) as error:
        return type(error), str(error)


@pytest.mark.parametrize(
    "asked",
    [
        lambda size, named, base, derived: size(1),
        lambda size, named, base, derived: size(1, 3, seen=[1]).seen,
        lambda size, named, base, derived: size(-1),
        lambda size, named, base, derived: size(),
        lambda size, named, base, derived: size(1, wide=2),
        lambda size, named, base, derived: size(1, note="a") == size(1, note="b"),
        lambda size, named, base, derived: size(1).__eq__(1),
        lambda size, named, base, derived: hash(size(1, 2, "a")) == hash(size(1, 2, "b")),
        lambda size, named, base, derived: hash(size(1, 2)) == hash((1, 2)),
        lambda size, named, base, derived: dataclasses.replace(size(1), height=5),
        lambda size, named, base, derived: dataclasses.asdict(size(1, seen=[4])),
        lambda size, named, base, derived: [each.name for each in dataclasses.fields(derived)],
        lambda size, named, base, derived: setattr(size(1), "width", 3),
        lambda size, named, base, derived: delattr(size(1), "width"),
        lambda size, named, base, derived: size(1).seen is size(1).seen,
        lambda size, named, base, derived: copy.deepcopy(size(1, 4, "n", [7])),
        lambda size, named, base, derived: copy.copy(size(1, 4, "n", [7])).seen,
        lambda size, named, base, derived: named(name="x"),
        lambda size, named, base, derived: named("x"),
        lambda size, named, base, derived: hash(named(name="x")) == hash(("x", 1)),
        lambda size, named, base, derived: base("b", late=4).late,
        lambda size, named, base, derived: derived("d", 1.5, late=2) == base("d"),
        lambda size, named, base, derived: (derived("d"), hash(derived("d")) == hash("d"), derived.__doc__),
        lambda size, named, base, derived: setattr(derived("d"), "extra", 1),
        lambda size, named, base, derived: setattr(type("Below", (size,), {})(1), "width", 1),
        lambda size, named, base, derived: size.__init__.__qualname__.rpartition(".")[2],
        lambda size, named, base, derived: size.__match_args__,
        lambda size, named, base, derived: dataclasses.dataclass(frozen=True)(type("Their", (base,), {}))("t").name,
    ],
)  # fmt: skip
def test_what_is_asked_of_ours_is_answered_as_by_the_standard_library(asked: Any) -> None:
    assert _said(lambda: asked(*OUR)) == _said(lambda: asked(*THEIR))


def test_ours_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Our(3, "b"))) == Our(3, "b")
    assert Our(3).__getstate__() == Their(3).__getstate__()  # type: ignore[attr-defined]


def test_init_is_written_for_the_first_instance() -> None:
    @record.dataclass(frozen=True)
    class Late:
        value: int

    first = Late.__init__
    assert Late(1) == Late(1) and Late.__init__ is not first
    with pytest.raises(FrozenInstanceError):
        Late(1).value = 2  # type: ignore[misc]


def test_classes_that_change_are_left_to_the_standard_library() -> None:
    with pytest.raises(TypeError, match="frozen classes only"):
        record.dataclass(frozen=False)
