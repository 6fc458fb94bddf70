"""JSON as its standard has it: no Infinity and no NaN, which Python's own writer lets through."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def to_json(record: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Return a record as JSON text; a number that is not finite becomes null, a path its text.

    Raises TypeError for anything else that JSON has no word for.
    """
    return json.dumps(
        _finite(record), indent=indent, ensure_ascii=False, allow_nan=False, default=_text_of_path
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text_of_path(value: Any) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"JSON has no word for {type(value).__name__}")
