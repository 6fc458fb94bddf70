"""The memory of a process, each in one of its own: what is freed goes back, and few kernels are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamafarm.hardware.process import can_return_freed_memory, resident_memory_bytes

MIB = 2**20

HOLES = """
import sys, torch
from llamafarm.hardware import process
if sys.argv[1] == "returning":
    assert process.return_freed_memory()
before = process.resident_memory_bytes()
for _ in range(20):  # blocks of 16 MiB with small ones between that stay
    large, small = torch.ones(4 * 2**20), torch.ones(2**18)
    kept = [*globals().get("kept", []), small]
    del large
print(process.resident_memory_bytes() - before - 20 * 2**20)
"""

KERNELS = """
import sys, torch
from llamafarm.hardware import process
if sys.argv[1] == "few":
    process.keep_few_kernels()
with torch.no_grad():
    weight = torch.ones(64, 64, dtype=torch.bfloat16)
    torch.nn.functional.linear(torch.ones(8, 64, dtype=torch.bfloat16), weight)
    before = process.resident_memory_bytes()
    for length in range(64, 864):
        torch.nn.functional.linear(torch.ones(length, 64, dtype=torch.bfloat16), weight)
print(process.resident_memory_bytes() - before)
"""


def run(code: str, word: str) -> int:
    # Without the limit on kernels that this process may have set for itself.
    environment = {name: text for name, text in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    done = subprocess.run(
        [sys.executable, "-c", code, word],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not can_return_freed_memory(), reason="Linux with glibc only")
def test_freed_blocks_go_back_at_once() -> None:
    assert run(HOLES, "returning") < 12 * MIB


def test_few_kernels_are_kept() -> None:
    all_of_them, few = run(KERNELS, "all"), run(KERNELS, "few")
    if all_of_them < 60 * MIB:
        pytest.skip("this processor's products in 16 bits are not compiled by shape")
    assert few < all_of_them / 3


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="Linux only")
def test_what_is_touched_is_resident() -> None:
    before = resident_memory_bytes()
    block = bytearray(b"1" * (64 * MIB))
    assert resident_memory_bytes() - before == pytest.approx(len(block), rel=0.1)
