"""Numbers as people read them; a dash for what is not known."""

from __future__ import annotations

import math
from datetime import datetime

UNKNOWN = "–"
_MINUS = "−"


def show_number(value: float | None, digits: int = 4) -> str:
    """Return a figure to so many significant digits, without trailing noise."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e7 or size < 1e-4:
        return _sign(f"{value:.{max(digits - 2, 1)}e}")
    if size >= 10 ** (digits - 1):
        return _sign(f"{value:,.0f}")
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return _sign(f"{value:,.{min(decimals, digits)}f}")


def show_loss(value: float | None) -> str:
    """Return a loss with three decimals."""
    return UNKNOWN if value is None else _sign(f"{value:,.3f}") if abs(value) < 1e6 else show_number(value)


def show_signed(value: float | None, decimals: int = 3) -> str:
    """Return a difference with its sign."""
    if value is None:
        return UNKNOWN
    return _sign(f"{value:+,.{decimals}f}") if abs(value) < 1e6 else _sign(f"{value:+.2e}")


def show_share(value: float | None, decimals: int = 0) -> str:
    """Return a part of 1 in percent."""
    return UNKNOWN if value is None else _sign(f"{value:.{decimals}%}").replace("%", " %")


def show_count(value: float | None) -> str:
    """Return a whole number with its thousands set off."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def show_bytes(value: float | None) -> str:
    """Return an amount of memory, such as `1.53 GiB`."""
    if value is None:
        return UNKNOWN
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{show_number(value / size, 3)} {unit}"
    return f"{value:.0f} bytes"


def show_seconds(value: float | None) -> str:
    """Return a duration, such as `3 min 12 s`."""
    if value is None:
        return UNKNOWN
    if value < 10:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def show_time(text: str | None) -> str:
    """Return an ISO time as `2026-11-26 07:09 UTC`; a text that is none as it stands."""
    if text is None:
        return UNKNOWN
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".rstrip()


def show_plural(number: float | None, one: str, several: str | None = None) -> str:
    """Return a number with the thing it counts, such as `1 row` or `2 rows`."""
    return f"{show_count(number)} {one if number == 1 else several or one + 's'}"


def _sign(text: str) -> str:
    return text.replace("-", _MINUS, 1) if text.startswith("-") else text.replace("e-", f"e{_MINUS}")
