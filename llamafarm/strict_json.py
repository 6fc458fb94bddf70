"""JSON as its standard has it, without Infinity and NaN, and without the secrets of the environment."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from llamafarm.redaction import hide_secrets, secrets_of_environment


def to_json(record: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Return a record as JSON text; a number that is not finite becomes null, a path its text.

    Secrets that the environment holds are hidden in its texts. Raises TypeError for anything else that JSON
    has no word for.
    """
    return json.dumps(
        _clean(record, secrets_of_environment()),
        indent=indent,
        ensure_ascii=False,
        allow_nan=False,
        default=_text_of_path,
    )


def _clean(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _clean(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item, secrets) for item in value]
    if isinstance(value, str):
        return hide_secrets(value, secrets)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text_of_path(value: Any) -> str:
    if isinstance(value, PurePath):
        return hide_secrets(str(value))
    raise TypeError(f"JSON has no word for {type(value).__name__}")
