"""Main memory: how much there is, how much can be had, and the most that this process has held.

`device.py` answers the same for the device of a run, whichever it is.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from llamafarm.hardware.container import memory_limits

_ROOT = Path("/")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size to what is resident now


def read_main_memory(root: Path = _ROOT) -> tuple[int, int]:
    """Return the main memory in bytes, and how much of it can be had now, within a container's limits."""
    total, available = _read_system_memory(root)
    for limit, usage in memory_limits(root):
        if limit < total:
            total = limit
        available = min(available, limit - usage)
    return total, max(available, 0)


def peak_main_memory_bytes() -> int:
    """Return the most main memory that this process has held since its start, or since the peak was reset."""
    # getrusage hands a large parent's peak on to the program that it starts; the kernel's own count does not.
    peak = _read_kilobytes(_STATUS).get("VmHWM")
    if peak is not None:
        return peak
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


def reset_peak_main_memory() -> bool:
    """Let the peak start again from what is held now; return whether this system can."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _read_system_memory(root: Path) -> tuple[int, int]:
    num_bytes = _read_kilobytes(root / "proc/meminfo")
    if "MemTotal" in num_bytes:
        return num_bytes["MemTotal"], num_bytes.get("MemAvailable", num_bytes.get("MemFree", 0))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, min(_read_free_on_macos() or total, total)


def _read_kilobytes(path: Path) -> dict[str, int]:
    """Return the fields of one of the kernel's tables in bytes; none if it is not there."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields if len(field) == 3}


def _read_free_on_macos() -> int | None:
    """Return what macOS can give: free, inactive and speculative pages; None on other systems."""
    printed = run_system_command("vm_stat")
    if not printed:
        return None
    first, *lines = printed.splitlines()
    page_bytes = int("".join(filter(str.isdecimal, first)) or 4096)
    counts = {name: value.strip(" .") for name, _, value in (line.partition(":") for line in lines)}
    wanted = ("Pages free", "Pages inactive", "Pages speculative")
    return sum(int(counts[name]) for name in wanted if counts.get(name, "").isdecimal()) * page_bytes


def run_system_command(*command: str) -> str:
    """Return what a command of the system prints; nothing if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# What torch and its libraries say on devices that have no class of their own for it.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory did not suffice, on whichever device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _OUT_OF_MEMORY)
