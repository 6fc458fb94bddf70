"""The ranges of numbers in the guide's tables, and how the guide prints them."""

from __future__ import annotations

import re
from typing import NamedTuple


class Range(NamedTuple):
    """From `low` to `high`, both included. Whole numbers stay whole, so that they print as they were read."""

    low: float
    high: float

    def __str__(self) -> str:
        """Return it as the guide prints it: 4, 1-5, 0.03-0.1, 1e-5 to 5e-4."""
        if self.low == self.high:
            return show_number(self.low)
        joint = " to " if 0 < self.low < _SMALL else "-"
        return f"{show_number(self.low)}{joint}{show_number(self.high)}"


_SMALL = 1e-3


def show_number(value: float) -> str:
    """Return a number as the guide prints it: 8, 0.05, 5e-4."""
    if 0 < value < _SMALL:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return str(value)


def show_billions(parameters: Range) -> str:
    """Return a range of parameter counts as the guide prints it: 3B, 1-3B, ≤7B where it begins at 0."""
    high = f"{parameters.high / 1e9:g}B"
    if parameters.low == 0:
        return f"≤{high}"
    return high if parameters.low == parameters.high else f"{parameters.low / 1e9:g}-{high}"


def show_parameters(num_parameters: float) -> str:
    """Return a model's size in short: 5.5M, 494M, 7B."""
    if num_parameters >= 1e9:
        return f"{num_parameters / 1e9:.3g}B"
    return f"{num_parameters / 1e6:.3g}M"


def show_minutes(minutes: Range) -> str:
    """Return a time as the guide prints it: 30-60 min, 1-2 hours."""
    if minutes.low < 60:
        return f"{minutes} min"
    return f"{minutes.low / 60:g}-{minutes.high / 60:g} hours"


_SIZE_IN_NAME = re.compile(
    r"(?<![a-z0-9.])(?:(?P<experts>\d{1,3})x)?(?P<count>\d{1,6}(?:\.\d{1,6})?)(?P<unit>[bmk])(?![a-z0-9])",
    re.I,
)
_UNITS = {"b": 1e9, "m": 1e6, "k": 1e3}


def is_size(text: str) -> bool:
    """Return whether a text is nothing but a size, such as 3B."""
    return _SIZE_IN_NAME.fullmatch(text) is not None and read_num_parameters(text) is not None


def read_num_parameters(name: str) -> float | None:
    """Return the size that a model's name tells, such as 3B, Qwen2.5-0.5B-Instruct or Mixtral-8x7B.

    A mixture of experts counts as all of them, which is a little too many. None if the name has no size.
    """
    found = _SIZE_IN_NAME.search(name.rpartition("/")[2])
    if found is None or float(found["count"]) == 0:
        return None
    return float(found["experts"] or 1) * float(found["count"]) * _UNITS[found["unit"].casefold()]
