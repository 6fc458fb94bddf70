"""JSON as its standard has it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llamafarm.strict_json import to_json


def test_what_is_not_finite_becomes_null_at_any_depth() -> None:
    record = {"a": math.inf, "b": [1.5, math.nan, {"c": -math.inf}], "d": (2, "é")}
    assert json.loads(to_json(record)) == {"a": None, "b": [1.5, None, {"c": None}], "d": [2, "é"]}


def test_a_path_becomes_its_text_and_anything_else_is_refused() -> None:
    assert to_json({"file": Path("a/b")}) == '{"file": "a/b"}'
    with pytest.raises(TypeError, match="object"):
        to_json({"file": object()})
