"""`dataclass` as the standard library has it, for frozen classes, at a twentieth of what it costs a program that starts.

The standard library compiles six methods a class while a module is loaded. A command loads over two hundred such classes, half a
millisecond each: a sixth of a cold `optimize plan`, and four in five of the methods are never called. Here the fields are the standard
library's, so that `fields`, `replace` and `asdict` read them; `__init__` is compiled for the first instance, and the other methods need no
code of their own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, Field, FrozenInstanceError
from operator import attrgetter
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass

    Fields = tuple[Field[Any], ...]
else:

    def dataclass(*, frozen: bool, slots: bool = False, kw_only: bool = False) -> Callable[[type[T]], type[T]]:
        """Return what makes a class a frozen dataclass. Raises TypeError where it is not to be frozen: those are the standard library's."""
        if not frozen:
            raise TypeError("for frozen classes only; dataclasses.dataclass makes the others")
        return lambda cls: _frozen(cls, slots, kw_only)


T = TypeVar("T")


def replace(record: T, /, **changes: Any) -> T:
    """Return a copy with other values of some fields, as `dataclasses.replace` does, at half of what that takes: for what a plan does
    thousands of times.
    """
    cls = type(record)
    values, places = _PLACES.get(cls) or _PLACES.setdefault(cls, _places(cls))
    if not places or not changes.keys() <= places.keys():
        return dataclasses.replace(record, **changes)  # type: ignore[type-var]
    taken = list(values(record))
    for name, value in changes.items():
        taken[places[name]] = value
    return cls(*taken)


#: Of each class: what gives the values of its fields, and the place of each field among them.
_PLACES: dict[type, tuple[Callable[[Any], tuple[Any, ...]], dict[str, int]]] = {}


def _places(cls: Any) -> tuple[Callable[[Any], tuple[Any, ...]], dict[str, int]]:
    """Of a class whose fields are given by their place; else of one without any."""
    named: Fields = dataclasses.fields(cls)
    if len(named) < 2 or any(field.kw_only or not field.init for field in named):
        return tuple, {}
    return attrgetter(*(field.name for field in named)), {field.name: place for place, field in enumerate(named)}


def _frozen(cls: Any, slots: bool, kw_only: bool) -> Any:
    """A class with its fields and methods; methods that it defines itself stay, all but `__init__`."""
    derived = hasattr(
        cls, "__dataclass_fields__"
    )  # what derives from a frozen class must be made so by the standard library
    made: Any = dataclasses.dataclass(
        init=False, repr=False, eq=False, frozen=derived, slots=slots, kw_only=kw_only
    )(cls)  # fmt: skip
    made.__dataclass_params__.frozen = True
    named: Fields = dataclasses.fields(made)
    if not all(field.init for field in named):
        raise TypeError("every field is given to __init__ here; dataclasses.dataclass has others")
    own = vars(made)
    methods = {"__repr__": _repr(named), "__eq__": _eq(_values(named))}
    if own.get("__hash__") is None:  # as where `__eq__` is defined and `__hash__` is not
        made.__hash__ = _named(made, "__hash__", _hash(_values(named)))
    methods |= {"__setattr__": _setattr(made, named), "__delattr__": _delattr(made, named)}
    if slots:
        methods |= {"__getstate__": _getstate, "__setstate__": _setstate}
    for name in methods.keys() - own.keys():
        setattr(made, name, _named(made, name, methods[name]))
    made.__init__ = _named(made, "__init__", _first_init(made))
    made.__signature__ = _SIGNATURE
    return made


class _Signature:
    """What `inspect` and `help` show of a class, made when they ask."""

    def __get__(self, instance: object, cls: type) -> Any:
        import inspect

        own = inspect.signature(_init(cls))
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        taken = list(own.parameters.values())[1:]
        return own.replace(parameters=[each.replace(annotation=kinds[each.name]) for each in taken])


_SIGNATURE = _Signature()


def _named(cls: type, name: str, method: Any) -> Any:
    method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
    return method


def _first_init(cls: Any) -> Callable[..., None]:
    """An `__init__` that has the class's own written, and calls it."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__ = _named(cls, "__init__", _init(cls))
        cls.__init__(self, *args, **kwargs)

    return init


def _init(cls: Any) -> Callable[..., None]:
    """The `__init__` that takes every field and calls `__post_init__`.

    It puts values where they belong, past `__setattr__`: `object.__setattr__` looks up again at each call where that is, and a plan makes
    eighty thousand instances with half a million values.
    """
    taken, lines = [], [" _own = self.__dict__"] if _has_dict(cls) else []
    names: dict[str, Any] = {"_MISSING": MISSING}
    named = sorted(dataclasses.fields(cls), key=lambda field: bool(field.kw_only))
    for field in named:
        name, value = field.name, field.name
        if field.default_factory is not MISSING:
            names[f"_make_{name}"] = field.default_factory
            value = f"_make_{name}() if {name} is _MISSING else {name}"
        names[f"_default_{name}"] = field.default
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if field.kw_only and "*" not in taken:
            taken.append("*")
        taken.append(f"{name}=_default_{name}" if optional else name)
        slot = next((vars(kind)[name] for kind in cls.__mro__ if name in vars(kind)), None)
        if isinstance(slot, MemberDescriptorType):
            names[f"_set_{name}"] = slot.__set__
            lines.append(f" _set_{name}(self, {value})")
        else:
            lines.append(f" _own[{name!r}] = {value}")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    exec(f"def __init__({', '.join(['self', *taken])}):\n" + "\n".join(lines or [" pass"]), names)
    return names["__init__"]  # type: ignore[no-any-return]


def _has_dict(cls: type) -> bool:
    return any("__dict__" in vars(kind) for kind in cls.__mro__)


def _values(named: Fields) -> Callable[[Any], Any]:
    """What gives the values that tell two instances apart: one value where there is one field."""
    compared = [field.name for field in named if field.compare]
    return attrgetter(*compared) if compared else lambda self: ()


def _eq(values: Callable[[Any], Any]) -> Callable[[Any, object], bool]:
    def eq(self: Any, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    return eq


def _hash(values: Callable[[Any], Any]) -> Callable[[Any], int]:
    return lambda self: hash(values(self))


def _repr(named: Fields) -> Callable[[Any], str]:
    shown = [field.name for field in named if field.repr]

    def text(self: Any) -> str:
        return f"{self.__class__.__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    return text


def _setattr(cls: Any, named: Fields) -> Callable[[Any, str, Any], None]:
    names = frozenset(field.name for field in named)

    def refuse(self: Any, name: str, value: Any) -> None:
        if type(self) is cls or name in names:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        super(cls, self).__setattr__(name, value)  # a class below it that is no dataclass

    return refuse


def _delattr(cls: Any, named: Fields) -> Callable[[Any, str], None]:
    names = frozenset(field.name for field in named)

    def refuse(self: Any, name: str) -> None:
        if type(self) is cls or name in names:
            raise FrozenInstanceError(f"cannot delete field {name!r}")
        super(cls, self).__delattr__(name)

    return refuse


def _getstate(self: Any) -> list[Any]:
    """What is pickled of a class with slots."""
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _setstate(self: Any, state: list[Any]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
