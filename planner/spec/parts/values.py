"""What values of a spec are written as: numbers with units, counts; and the base of all parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, WithJsonSchema

from passes.errors import InputError
from passes.ir.fields import LARGEST
from planner.spec import units

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # pydantic has no public name for it


def _said(what: str, *examples: str) -> WithJsonSchema:
    """The schema of what is written as text with a unit."""
    return WithJsonSchema({"type": "string", "description": what, "examples": list(examples)})


Bytes = Annotated[
    int,
    BeforeValidator(units.parse_bytes),
    PlainSerializer("{} B".format),
    _said("Memory, with its unit.", "0.5 GiB", "24 GB"),
]
Seconds = Annotated[
    float,
    BeforeValidator(units.parse_seconds),
    PlainSerializer("{} s".format),
    _said("A time, with its unit.", "500 ms", "2 s"),
]
Rate = Annotated[
    float, BeforeValidator(units.parse_rate), PlainSerializer("{} tok/s".format), _said("Tokens a second.", "20 tok/s")
]
Arrivals = Annotated[
    float, Field(allow_inf_nan=True), BeforeValidator(units.parse_arrivals), PlainSerializer(units.format_arrivals),
    _said("Requests a second.", "4/s", "30/min", "inf"),
]  # fmt: skip
Share = Annotated[
    float,
    BeforeValidator(units.parse_share),
    PlainSerializer(units.format_share),
    _said("A share, in percent.", "5%", "0.5%"),
]
Count = Annotated[int, Field(ge=1, le=LARGEST, strict=True)]
Tokens = Annotated[
    int, Field(ge=1, le=LARGEST, strict=True), BeforeValidator(units.parse_tokens),
    WithJsonSchema({
        "anyOf": [{"type": "integer", "minimum": 1, "maximum": LARGEST}, {"type": "string", "pattern": r"^\s*[0-9]+\s*[kKmM]\s*$"}],
        "description": "Tokens; k is 1,024, m is 1,048,576.", "examples": [8192, "32k", "1m"],
    }),
]  # fmt: skip


class OrOne:
    """Marks a list that a name by itself may stand for: it is a list of one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Make a list of a single name before the list is checked."""
        from pydantic_core.core_schema import no_info_before_validator_function as before

        return before(lambda said: (said,) if isinstance(said, str) else said, handler(source))

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        """Describe both."""
        several = handler(core)
        return {"anyOf": [several, several["items"]]}


def also(*kinds: Mapping[str, Any]) -> Any:
    """Return a field whose schema has further kinds of values: what a validator reads as one of its own."""

    def widened(schema: dict[str, Any]) -> None:
        schema["anyOf"] = [*schema.get("anyOf", ()), *kinds]

    return Field(json_schema_extra=widened)


class _Told(ModelMetaclass):
    """Has a part that is made by name, as Python callers do, tell what is wrong with it as a spec's file does."""

    def __call__(cls, *by_place: Any, **given: Any) -> Any:  # noqa: N805 (of a metaclass)
        part: Any = cls
        if by_place:
            keys = ", ".join(part.model_fields)
            raise InputError(f"{part.__name__} takes its keys by name", remedy=f"its keys: {keys}")
        try:
            made = part.model_validate(given)
        except ValidationError as error:
            from planner.spec.parse import explained

            raise explained(error, None, given, part.__name__, part) from None
        for _, look in made.names():
            look()
        return made


class Strict(BaseModel, metaclass=_Told):
    """Base of every part of the spec: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True
    )  # built once, as parts of the whole

    def names(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """Give the keys that name something tightfit has a list of, each with what raises InputError for a name that is not on it."""
        yield from ()


Positive = Annotated[float, Field(gt=0)]
