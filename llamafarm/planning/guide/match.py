"""Which of the guide's rows a device is: its own by name and memory, else that of the largest it covers."""

from __future__ import annotations

from llamafarm.planning.guide.machines import (
    AppleRow,
    GpuRow,
    largest_apple_row_within,
    largest_gpu_row_within,
    match_apple_row,
    match_gpu_row,
)


def find_device_row(kind: str, name: str, memory_gb: float) -> tuple[GpuRow | AppleRow | None, bool]:
    """Return the row for a device of a kind (cuda, mps or cpu), and whether it is the device's own.

    The guide has no row for a processor, nor for less memory than its smallest.
    """
    own: GpuRow | AppleRow | None = None
    nearest: GpuRow | AppleRow | None = None
    if kind == "cuda":
        own, nearest = match_gpu_row(name, memory_gb), largest_gpu_row_within(memory_gb)
    elif kind == "mps":
        own, nearest = match_apple_row(name, memory_gb), largest_apple_row_within(memory_gb)
    return own or nearest, own is not None


def describe_device_row(kind: str, name: str, memory_gb: float) -> str:
    """Return the guide's row for a device as a line for people."""
    row, is_own = find_device_row(kind, name, memory_gb)
    if row is None:
        return "CPU-Only Configuration: small models and testing" if kind == "cpu" else "no row of its memory"
    largest = row.max_model if isinstance(row, GpuRow) else f"{row.models.high / 1e9:g}B"
    which = row.name if is_own else f"{row.name}, the nearest by memory"
    return f"{which}: batches of {row.batch_size} rows, models up to {largest}"


def most_rows_at_once(kind: str, name: str, memory_gb: float) -> int:
    """Return the largest batch of the device's row; 1 where the guide has none."""
    row, _ = find_device_row(kind, name, memory_gb)
    return int(row.batch_size.high) if row is not None else 1
