"""Amounts of memory and time, as people read them."""

from __future__ import annotations


def show_mib(num_bytes: int) -> str:
    """Return bytes in MiB."""
    return f"{num_bytes / 2**20:,.1f} MiB"


def show_seconds(seconds: float) -> str:
    """Return a time in the units that suit it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"about {hours} h {minutes} min"
    return f"about {minutes} min {rest} s" if minutes else f"about {max(rest, 1)} s"
