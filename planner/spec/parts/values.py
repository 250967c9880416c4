"""What values of a spec are written as: numbers with units, counts; and the base of all parts."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from passes.ir.fields import LARGEST
from planner.spec import units


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


class Strict(BaseModel):
    """Base of every part of the spec: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True
    )  # built once, as parts of the whole


Positive = Annotated[float, Field(gt=0)]
