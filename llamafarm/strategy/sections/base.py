"""What every section shares: the frozen model it is, and the number types its fields use."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    GetPydanticSchema,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError, core_schema

AtLeastOne = Annotated[int, Field(ge=1, le=10**9)]
NotNegativeInt = Annotated[int, Field(ge=0, lt=2**32)]
"""Bounded, because NumPy takes no larger seed."""

NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
"""0 is allowed, 1 is not."""

TextList = Annotated[tuple[str, ...], Field(strict=False)]
"""A list in the file, a tuple here, so that a strategy cannot change."""


class Section(BaseModel):
    """A part of a strategy: frozen, closed to unknown keys, and strict about types.

    Strict, because a quoted number or a 1 for `true` is more often a slip than a wish.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class EpochRange(BaseModel):
    """A number of epochs to be found during training: at least `minimum`, at most `maximum`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    minimum: AtLeastOne
    maximum: AtLeastOne

    def __str__(self) -> str:
        """Return it as it is written in a file, such as 5-10."""
        return f"{self.minimum}-{self.maximum}"


_RANGE = re.compile(r"\s*([0-9]{1,6})\s*-\s*([0-9]{1,6})\s*")


def _read_epochs(value: Any) -> int | float | EpochRange:
    """Read 3, 0.5 or "5-10"; one validator and not a union, so that a fault is reported once."""
    if isinstance(value, EpochRange):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if 0 < value <= 1_000_000:
            return value
        raise PydanticCustomError("epochs", "must be greater than 0 and at most 1000000")
    if isinstance(value, str) and (found := _RANGE.fullmatch(value)):
        minimum, maximum = int(found[1]), int(found[2])
        if not 1 <= minimum <= maximum:
            raise PydanticCustomError("epochs", "must be a range from at least 1 to something not smaller")
        return EpochRange(minimum=minimum, maximum=maximum)
    raise PydanticCustomError("epochs", "must be a number or a range such as 5-10")


def _write_epochs(value: int | float | EpochRange) -> int | float | str:
    return str(value) if isinstance(value, EpochRange) else value


Epochs = Annotated[
    int | float | EpochRange,
    PlainValidator(_read_epochs),
    PlainSerializer(_write_epochs),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": 1_000_000},
                {"type": "string", "pattern": "^[0-9]+-[0-9]+$"},
            ]
        }
    ),
]
"""A number of epochs, whole or not, or a range."""


def or_auto(number: Any) -> GetPydanticSchema:
    """Let a field's annotation take the word `auto` beside a number; faults are those of the number alone."""

    def keep_auto(value: Any, validate: core_schema.ValidatorFunctionWrapHandler) -> Any:
        return value if value == "auto" else validate(value)

    def build(_: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            keep_auto, handler(number), serialization=core_schema.plain_serializer_function_ser_schema(_as_is)
        )

    def describe(_: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(TypeAdapter(number).core_schema), {"const": "auto"}]}

    return GetPydanticSchema(build, describe)


def _as_is(value: Any) -> Any:
    return value


def fixed_count(value: int | Literal["auto"]) -> int:
    """Return a count that training has put in the place of `auto`, or that never was one."""
    assert value != "auto", "auto is resolved before a count is used"
    return value


def read_auto(value: Any) -> Any:
    """Take the word `auto` for nothing given, in settings that are chosen from the device when unset."""
    return None if value == "auto" else value


def read_no(value: Any) -> Any:
    """Take a boolean false for the word `no`, which YAML 1.1 editors and tools write for it."""
    return "no" if value is False else value


def read_lower_case(value: Any) -> Any:
    """Lower a word's case, for names that are written both ways."""
    return value.lower() if isinstance(value, str) else value
