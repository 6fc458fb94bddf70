"""What is wrong with one row; whoever reads the file knows where it stands, and if it may be left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
# A row with its number from 1, or what is wrong with it.
NumberedRow = tuple[int, "Row | BadRowError"]
# The same, or a line of JSON that nobody has parsed yet.
RawRow = tuple[int, "str | Row | BadRowError"]

_MOST_KEYS_SHOWN = 12
_HALF_OF_A_CHARACTER = re.compile("[\ud800-\udfff]")


class BadRowError(Exception):
    """What is wrong with a row and what to try."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class EmptyTurnError(BadRowError):
    """A row whose prompt or answer is empty or not there."""


def shorten(text: str, most: int = 60) -> str:
    """Return a text as it is quoted in an error: its beginning, with nothing that a terminal acts on."""
    return repr(text[:most]) + ("…" if len(text) > most else "")


def show_keys(row: Row) -> str:
    """Return the keys of a row as they are named in an error: the first ones, each shortened."""
    shown = ", ".join(shorten(key, 30) for key in list(row)[:_MOST_KEYS_SHOWN])
    return (shown or "(none)") + (", …" if len(row) > _MOST_KEYS_SHOWN else "")


def check_text(value: object, key: str) -> str:
    """Return a field's value, which must be a text of whole characters. Raises `BadRowError` otherwise."""
    if not isinstance(value, str):
        raise BadRowError(
            f"{key!r} is {type(value).__name__}, not a text", f"Write {key!r} as a JSON string."
        )
    if not value.isascii() and _HALF_OF_A_CHARACTER.search(value):
        raise BadRowError(
            f"{key!r} has half of a character, \\ud800 to \\udfff", "Save the file as UTF-8 again."
        )
    return value
