"""The ranges of numbers in the guide's tables, and how the guide prints them."""

from __future__ import annotations

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


def show_minutes(minutes: Range) -> str:
    """Return a time as the guide prints it: 30-60 min, 1-2 hours."""
    if minutes.low < 60:
        return f"{minutes} min"
    return f"{minutes.low / 60:g}-{minutes.high / 60:g} hours"
