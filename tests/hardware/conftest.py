"""Machines that are only described: nothing here claims that it ran on one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llamafarm.hardware.machine import Gpu, Machine

GIB = 2**30
GPUS = {
    "RTX 3090": Gpu("cuda", "NVIDIA GeForce RTX 3090", 24 * GIB, 23 * GIB, (8, 6), has_bf16=True),
    "RTX 2080": Gpu("cuda", "NVIDIA GeForce RTX 2080", 8 * GIB, 7 * GIB, (7, 5)),
    "MI300X": Gpu("cuda", "AMD Instinct MI300X", 192 * GIB, 190 * GIB, (9, 4), is_rocm=True, has_bf16=True),
    "M1": Gpu("mps", "Apple M1", 10 * GIB, 10 * GIB, has_bf16=True),
    "M1 before macOS 14": Gpu("mps", "Apple M1", 10 * GIB, 10 * GIB),
}
PLAIN = Machine("Linux", "x86_64", "Some CPU", 8, frozenset({"avx2"}), 32 * GIB, 20 * GIB)


@pytest.fixture
def described() -> Callable[..., Machine]:
    """Return a function to a machine with the GPUs of these names."""

    def describe(*names: str) -> Machine:
        return replace(PLAIN, gpus=tuple(GPUS[name] for name in names))

    return describe
