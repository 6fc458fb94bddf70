"""Values out of JSON that anybody may have written: each is what it should be, or it is None."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafarm.confined import is_special

# Control characters have a picture each, so that a text shows what it holds; a page could not hold them.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys([*range(0x80, 0xA0), 0xFFFE, 0xFFFF], 0xFFFD)
# What turns the direction of all that follows would turn the page's own words, too.
_TURNS = {code: f"⟨U+{code:04X}⟩" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_PASSWORD = re.compile(r"(?<=://)[^\s/@]+@")
_TOKEN = re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_)[A-Za-z0-9_-]{16,}")
_HIDDEN = "…"
_MOST_BRIEF = 600


def text_of(value: Any) -> str | None:
    """Return a text that a page can hold, None for what is no text."""
    if not isinstance(value, str):
        return None
    whole = value.replace("\r\n", "\n").encode("utf-8", "replace").decode("utf-8")
    return whole.translate({**_PICTURES, **_TURNS})


def brief_of(value: Any) -> str | None:
    """Return a text of which nobody expects pages: its beginning, where it has them all the same."""
    text = text_of(value)
    if text is None or len(text) <= _MOST_BRIEF:
        return text
    return f"{text[:_MOST_BRIEF]}{_HIDDEN} ({len(text) - _MOST_BRIEF:,} characters more)"


def without_secrets(text: str) -> str:
    """Return a text without what looks like a password in an address, or like a token."""
    return _TOKEN.sub(_HIDDEN, _PASSWORD.sub(f"{_HIDDEN}@", text))


def number_of(value: Any) -> float | None:
    """Return a finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def count_of(value: Any) -> int | None:
    """Return a whole number, None for anything else."""
    number = number_of(value)
    return None if number is None or number != int(number) else int(number)


def mapping_of(value: Any) -> Mapping[str, Any]:
    """Return a mapping, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def list_of(value: Any) -> list[Any]:
    """Return a list, an empty one for anything else."""
    return value if isinstance(value, list) else []


def texts_of(value: Any) -> dict[str, str]:
    """Return the scalars of a mapping as texts by name."""
    return {
        brief_of(name) or "": brief_of(show_value(item)) or ""
        for name, item in mapping_of(value).items()
        if item is not None and not isinstance(item, dict | list)
    }


def show_value(value: Any) -> str:
    """Return a setting's value as YAML would have it in one line; a text as it stands."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return without_secrets(text_of(value) or "")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return without_secrets(text_of(shown) or "")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises `OSError`, or `ValueError` if it is not JSON."""
    if is_special(path):  # a FIFO would be waited for
        raise ValueError("it is no file")
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
