"""The memory of this process: how much it holds, and what of it is kept that could go."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from llamafarm.hardware.device import peak_memory_bytes

# mallopt's number for the size from which a block is a mapping of its own (malloc.h of glibc).
_M_MMAP_THRESHOLD = -3
_MAPPED_FROM_BYTES = 64 * 2**10

# Two caches hold each kernel: oneDNN's own and that of ideep, through which torch asks it.
_KERNEL_CACHES, _KEPT_KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"), "128"


def can_return_freed_memory() -> bool:
    """Return whether `return_freed_memory` does anything here: on Linux with glibc."""
    return platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"


def return_freed_memory() -> bool:
    """Let this process give every larger block back to the system when it is freed; return whether it does.

    glibc otherwise raises its threshold as it goes, and keeps a heap that packs of changing sizes leave holes
    in: the peak of training on a CPU was 1.2 to 1.6 times what was in use. Mapping each block anew costs its
    page faults: 7 to 75 % of the time on this project's machine, a virtual one where a fault takes 5 µs,
    the more the larger the packs.
    """
    if not can_return_freed_memory():
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM_BYTES))


def keep_few_kernels() -> None:
    """Let oneDNN keep the kernels of one or two packs; to be called before torch first multiplies in 16 bits.

    It compiles one for each shape of a product, and packs have ever new lengths: the 1,024 that it keeps
    unasked grew to 0.7 GiB. A new length is compiled anew in any case, in a fiftieth of the pack's time.
    """
    for cache in _KERNEL_CACHES:
        os.environ.setdefault(cache, _KEPT_KERNELS)


def resident_memory_bytes() -> int:
    """Return the main memory that this process holds now; where the system does not say, its peak so far."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return peak_memory_bytes("cpu")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
