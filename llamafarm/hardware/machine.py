"""A machine described: its processor, main memory and GPUs, as plain facts.

`read_machine` describes the one we run on; everything else in this folder takes a description, so that a
machine that is not at hand can be described too.
"""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_CGROUP_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
# The first of NVIDIA's generations that has bfloat16 and TF32.
AMPERE = (8, 0)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU. `kind` is what torch calls it: cuda (NVIDIA and AMD alike) or mps.

    Apple's share the main memory; theirs is what the system lets them use of it.
    """

    kind: str
    name: str
    memory_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int] | None = None
    is_rocm: bool = False
    has_bf16: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine has. `available_bytes` of main memory respect the limits of a container."""

    system: str
    architecture: str
    cpu_name: str
    num_cores: int
    cpu_flags: frozenset[str]
    memory_bytes: int
    available_bytes: int
    gpus: tuple[Gpu, ...] = ()

    @property
    def claims_bf16(self) -> bool:
        """Return whether the processor names instructions for bfloat16; a probe says what they are worth."""
        return bool(self.cpu_flags & {"avx512_bf16", "amx_bf16", "bf16"})


@cache
def read_machine() -> Machine:
    """Describe this machine, as it is at the first call."""
    total, available = read_main_memory()
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        cpu_name=_read_cpu_name(),
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu_flags=_read_cpu_flags(),
        memory_bytes=total,
        available_bytes=available,
        gpus=_read_gpus(),
    )


def read_main_memory() -> tuple[int, int]:
    """Return the main memory in bytes, and how much of it can be had now."""
    total, available = _read_system_memory()
    for limit_file, usage_file in _CGROUP_LIMITS:
        limit, usage = _read_number(limit_file), _read_number(usage_file)
        if limit is not None and limit < total:
            total, available = limit, min(available, limit - (usage or 0))
    return total, max(available, 0)


def _read_system_memory() -> tuple[int, int]:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = (line.split() for line in meminfo.read_text().splitlines())
        num_bytes = {name.rstrip(":"): int(value) * 1024 for name, value, *_ in fields}
        return num_bytes["MemTotal"], num_bytes.get("MemAvailable", num_bytes["MemFree"])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, min(_read_free_on_macos() or total, total)


def _read_free_on_macos() -> int | None:
    """Return what macOS can give: free, inactive and speculative pages; None on other systems."""
    printed = _run("vm_stat")
    if not printed:
        return None
    first, *lines = printed.splitlines()
    page_bytes = int("".join(filter(str.isdigit, first)) or 4096)
    counts = {name: value.strip(" .") for name, _, value in (line.partition(":") for line in lines)}
    wanted = ("Pages free", "Pages inactive", "Pages speculative")
    return sum(int(counts[name]) for name in wanted if counts.get(name, "").isdigit()) * page_bytes


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:  # no such limit here
        return None
    return int(text) if text.isdigit() else None


def _read_cpu_name() -> str:
    if platform.system() == "Darwin":
        return _run("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read_cpu_flags() -> frozenset[str]:
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    if platform.system() == "Darwin" and _run("sysctl", "-n", "hw.optional.arm.FEAT_BF16") == "1":
        return frozenset({"bf16"})
    return frozenset()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _run(*command: str) -> str:
    """Return what a command of the system prints; nothing if it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _read_gpus() -> tuple[Gpu, ...]:
    import torch

    if torch.cuda.is_available():
        return tuple(_read_cuda(torch, index) for index in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        limit = int(torch.mps.recommended_max_memory())
        free = max(limit - int(torch.mps.driver_allocated_memory()), 0)
        has_bf16 = torch.backends.mps.is_macos_or_newer(14, 0)
        return (Gpu("mps", _read_cpu_name(), limit, free, has_bf16=has_bf16),)
    return ()


def _read_cuda(torch: Any, index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    free_bytes, _ = torch.cuda.mem_get_info(index)
    is_rocm = torch.version.hip is not None
    capability = (int(properties.major), int(properties.minor))
    return Gpu(
        kind="cuda",
        name=str(properties.name),
        memory_bytes=int(properties.total_memory),
        free_bytes=int(free_bytes),
        compute_capability=capability,
        is_rocm=is_rocm,
        # On NVIDIA's older GPUs torch says yes, and emulates it.
        has_bf16=torch.cuda.is_bf16_supported() if is_rocm else capability >= AMPERE,
    )
