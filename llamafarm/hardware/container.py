"""What a container may use of its machine: the limits of the control groups that this process is in.

Both versions of Linux's control groups are read, from the process's own group up to the root: a batch
system or systemd sets limits far below the root, a container sees its own group as the root.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def memory_limits(root: Path = _ROOT) -> Iterator[tuple[int, int]]:
    """Yield the limit of each control group in bytes, and what is used of it and cannot be taken back."""
    for folder in _folders("memory", root):
        for limit_name, usage_name, reclaimable_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _read_number(folder / limit_name)
            if limit is not None:
                # Files that were read are counted as used until their pages are wanted for something else.
                reclaimable = _read_fields(folder / "memory.stat").get(reclaimable_name, 0)
                yield limit, max((_read_number(folder / usage_name) or 0) - reclaimable, 0)


def cpu_limit(root: Path = _ROOT) -> float | None:
    """Return how many processors' time this process may take; None without a limit."""
    limits = []
    for folder in _folders("cpu", root):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _folders(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, its own first, the mount's root last."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = PurePosixPath(path.lstrip("/"))
        yield from (mount / place for place in (group, *group.parents))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # no such limit here, or not ours to see
        return ""


def _read_number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isdecimal() else None


def _read_fields(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
