"""Arguments of the Python facade, held against what is expected: a wrong one is an InputError that names it, as on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache, wraps
from os import PathLike
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from passes.errors import InputError, misused
from passes.ir.fields import LARGEST, is_number, is_whole, shown
from passes.ir.readers.paths import path_named
from planner.spec.units import as_typed_tokens
from targets.engines.engine import MOST_CARDS

#: More bytes than any machine has; more seconds than anyone waits.
_MOST_BYTES, _MOST_SECONDS = 1 << 50, 1e6
#: Least and most of a record's numbers, as the command line takes them; of others whole numbers from 1 on, numbers above 0.
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "gpu_memory_utilization": (0.01, 1.0), "kv_cache_memory_bytes": (1, _MOST_BYTES),
    **dict.fromkeys(("reserve_bytes", "offload_bytes"), (0, _MOST_BYTES)),
    **dict.fromkeys(("shared_prefix", "pictures", "picture_tokens", "largest_graph", "media"), (0, LARGEST)),
    **dict.fromkeys(("tp", "pp", "dp", "ep"), (1, MOST_CARDS)),
    "rate": (0.001, 1e6), "seconds": (1.0, _MOST_SECONDS), "burstiness": (0.01, 1e6),
}  # fmt: skip


F = TypeVar("F", bound=Callable[..., Any])


def public(function: F) -> F:
    """Have a function of the facade tell what its caller can mend as an InputError: arguments that it does not take, with the nearest
    names, and packages that are not installed.
    """

    @wraps(function)
    def call(*by_place: Any, **by_name: Any) -> Any:
        try:
            return function(*by_place, **by_name)
        except TypeError:
            if (error := misused(function, by_place, by_name)) is not None:
                raise error from None
            raise
        except ModuleNotFoundError as error:
            from planner.setup.mistakes import as_told

            if (told := as_told(error, f"tightfit.{function.__name__}")) is None:
                raise
            raise told from error

    return cast(F, call)


def of_kind(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise InputError where an argument is none of some kinds; `expected` says in words what it may be."""
    if not isinstance(value, kinds):
        raise InputError(f"{name} is {shown(value)}, {_kind(value)}", remedy=f"expected is {expected}")


def file_named(name: str, value: Any, expected: str) -> Path:
    """Return an argument as a path. Raises InputError where it is no text or path, or none that can be looked for."""
    of_kind(name, value, (str, PathLike), expected)
    return path_named(Path(value))


def is_file(path: Path) -> bool:
    """Tell whether a path that a person wrote is a file's; one that no file can have (too long, no letters of a path) is not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def count(name: str, value: Any) -> int | None:
    """Return an argument that is a whole number from 1 on, `32k` (32,768), or left out. Raises InputError for anything else."""
    number = as_typed_tokens(value)
    if number is None:
        return None
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= LARGEST:
        raise InputError(
            f"{name} is {shown(value)}", remedy="expected is a whole number from 1 on, such as 8192 or '32k'"
        )
    return number


def optional_path(name: str, value: Any, expected: str) -> Path | None:
    """Return an argument as a path, where it is given, as `file_named` does."""
    return None if value is None else file_named(name, value, expected)


def optional_text(name: str, value: Any, expected: str) -> None:
    """Raise InputError where an argument is given and no text."""
    of_kind(name, value, (str, NoneType), expected)


def called(name: str, value: Any) -> None:
    """Raise InputError where an argument cannot be called."""
    if not callable(value):
        raise InputError(f"{name} is {shown(value)}, {_kind(value)}", remedy="expected is a function")


def record(name: str, value: Any, kind: type) -> None:
    """Raise InputError where an argument is no `kind`, or one of its fields is not what it is annotated as, or out of its range."""
    of_kind(name, value, kind, f"a {kind.__name__}")
    for field, hint in _hints(kind).items():
        _field(f"{name}.{field}", field, getattr(value, field), hint)


@lru_cache(maxsize=32)
def _hints(kind: type) -> Mapping[str, Any]:
    """What each field of a record is; what is imported for annotations alone is not looked into."""
    try:
        return get_type_hints(kind)
    except NameError:
        return {field.name: Any for field in fields(kind)} if is_dataclass(kind) else {}


def _field(path: str, field: str, value: Any, hint: Any) -> None:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return
    for kind in kinds:
        if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, kind):
            record(path, value, kind)
            return
    wanted = [_WANTED[kind] for kind in kinds if kind in _WANTED]
    known = all(kind in _WANTED or kind is NoneType or is_dataclass(kind) for kind in kinds)
    if known and not any(holds(value, _BOUNDS.get(field)) for holds, _ in wanted):
        words = [says(_BOUNDS.get(field)) for _, says in wanted]
        words += [f"a {kind.__name__}" for kind in kinds if is_dataclass(kind) and isinstance(kind, type)]
        raise InputError(f"{path} is {shown(value)}, {_kind(value)}", remedy=f"expected is {' or '.join(words)}")
    if not known and get_origin(hint) is tuple:
        of_kind(path, value, tuple, "a tuple")


#: Whether a value holds as a kind within bounds, and that in words.
_Bounds = tuple[float, float] | None
_WANTED: Mapping[Any, tuple[Callable[[Any, _Bounds], bool], Callable[[_Bounds], str]]] = {
    int: (
        lambda value, bounds: is_whole(value) and within(value, bounds or (1, LARGEST)),
        lambda bounds: "a whole number from {:,} to {:,}".format(*map(int, bounds or (1, LARGEST))),
    ),
    float: (
        lambda value, bounds: is_number(value) and within(value, bounds or (0, _MOST_BYTES)),
        lambda bounds: "a number from {:g} to {:g}".format(*(bounds or (0, _MOST_BYTES))),
    ),
    str: (lambda value, _: isinstance(value, str), lambda _: "text"),
    bool: (lambda value, _: isinstance(value, bool), lambda _: "True or False"),
}


def within(value: float, bounds: tuple[float, float]) -> bool:
    """Tell whether a number lies between two, or is one of them."""
    return bounds[0] <= value <= bounds[1]


def _kind(value: object) -> str:
    """Its type, with the article."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
