"""Main memory within the limits of a container, read from trees of files as Linux lays them out; peaks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafarm.hardware.container import cpu_limit, memory_limits
from llamafarm.hardware.memory import read_main_memory

MEMINFO = {"proc/meminfo": "MemTotal: 4000 kB\nMemFree: 1000 kB\nMemAvailable: 3000 kB\nHugePages_Total: 0\n"}
TOTAL, AVAILABLE = 4000 * 1024, 3000 * 1024
V1_UNLIMITED = "9223372036854771712"


def lay(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"
TREES = {
    "no groups": ({}, (TOTAL, AVAILABLE)),
    "a container's root in version 2": (
        {"proc/self/cgroup": "0::/", f"{V2}/memory.max": "1000000", f"{V2}/memory.current": "300000"},
        (1000000, 700000),
    ),
    "a limit above, none in the own group": (
        {
            "proc/self/cgroup": "0::/user.slice/job_7/step_0",
            f"{V2}/user.slice/job_7/step_0/memory.max": "max",
            f"{V2}/user.slice/job_7/memory.max": "2000000",
            f"{V2}/user.slice/job_7/memory.current": "500000",
        },
        (2000000, 1500000),
    ),
    "the least of several limits": (
        {
            "proc/self/cgroup": "0::/job/step",
            f"{V2}/job/memory.max": "2000000",
            f"{V2}/job/memory.current": "1900000",
            f"{V2}/job/step/memory.max": "1000000",
            f"{V2}/job/step/memory.current": "100000",
        },
        (1000000, 100000),
    ),
    "pages of files that were read can be taken back": (
        {
            "proc/self/cgroup": "0::/",
            f"{V2}/memory.max": "1000000",
            f"{V2}/memory.current": "900000",
            f"{V2}/memory.stat": "anon 100000\ninactive_file 600000\nactive_file 200000",
        },
        (1000000, 700000),
    ),
    "more used than allowed": (
        {"proc/self/cgroup": "0::/", f"{V2}/memory.max": "1000000", f"{V2}/memory.current": "2000000"},
        (1000000, 0),
    ),
    "version 1": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/",
            f"{V1}/memory.limit_in_bytes": V1_UNLIMITED,
            f"{V1}/docker/abc/memory.limit_in_bytes": "1000000",
            f"{V1}/docker/abc/memory.usage_in_bytes": "400000",
            f"{V1}/docker/abc/memory.stat": "inactive_file 7\ntotal_inactive_file 100000",
        },
        (1000000, 700000),
    ),
    "version 1, a container that sees its own group as the root": (
        {
            "proc/self/cgroup": "4:memory:/docker/abc",
            f"{V1}/memory.limit_in_bytes": "1000000",
            f"{V1}/memory.usage_in_bytes": "0",
        },
        (1000000, 1000000),
    ),
    "no limit": (
        {"proc/self/cgroup": "4:memory:/", f"{V1}/memory.limit_in_bytes": V1_UNLIMITED},
        (TOTAL, AVAILABLE),
    ),
    "a limit above the machine's memory": (
        {"proc/self/cgroup": "0::/", f"{V2}/memory.max": "999999999", f"{V2}/memory.current": "1"},
        (TOTAL, AVAILABLE),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), TREES.values(), ids=TREES)
def test_memory_is_within_every_limit_of_the_groups(
    files: dict[str, str], expected: tuple[int, int], tmp_path: Path
) -> None:
    assert read_main_memory(lay(tmp_path, {**MEMINFO, **files})) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "max 100000"}, None),
        (
            {"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "max 100000", f"{V2}/cpu.max": "150000 100000"},
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/a",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            },
            4.0,
        ),
    ],
)
def test_a_containers_share_of_the_processors(
    files: dict[str, str], expected: float | None, tmp_path: Path
) -> None:
    assert cpu_limit(lay(tmp_path, files)) == expected


@given(
    st.lists(
        st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")), min_size=3, max_size=3
    )
)
def test_tables_of_any_text_are_read_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    groups, limit, stat = texts
    root = lay(
        tmp_path_factory.mktemp("root"),
        {
            "proc/self/cgroup": f"0::/\n{groups}",
            f"{V2}/memory.max": limit,
            f"{V2}/memory.stat": stat,
            f"{V2}/cpu.max": limit,
        },
    )
    assert all(limit >= 0 <= used for limit, used in memory_limits(root))
    assert (cpu_limit(root) or 0) >= 0


def run(script: str, *, held_by_parent_bytes: int = 0) -> list[str]:
    """Return what a script prints in a process of its own, whose parent holds so much memory."""
    parent = (
        f"import subprocess, sys; block = bytearray({held_by_parent_bytes})\n"
        f"subprocess.run([sys.executable, '-c', {script!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent], check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_the_peak_is_in_bytes_and_stays() -> None:
    before, during, after = map(
        int,
        run(
            "from llamafarm.hardware.device import peak_memory_bytes as peak\n"
            "before = peak('cpu'); block = b'x' * (before * 3 // 2); during = peak('cpu'); del block\n"
            "print(before, during, peak('cpu'))"
        ),
    )
    assert 2**22 < before < 2**30
    assert before * 3 // 2 <= during <= before * 3
    assert after >= during * 0.98  # the kernel counts what is resident now a little more exactly


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is getrusage's, which has this flaw")
def test_the_peak_of_the_parent_is_not_ours() -> None:
    (peak,) = run(
        "from llamafarm.hardware.device import peak_memory_bytes as peak; print(peak('cpu'))",
        held_by_parent_bytes=300 * 2**20,
    )
    assert int(peak) < 200 * 2**20


def test_the_peak_starts_again_where_it_can() -> None:
    can, before, after = run(
        "from llamafarm.hardware.device import peak_memory_bytes as peak, reset_peak_memory\n"
        "block = b'x' * (200 * 2**20); before = peak('cpu'); del block\n"
        "print(reset_peak_memory('cpu'), before, peak('cpu'))"
    )
    held = 200 * 2**20
    assert int(before) >= held
    assert (int(after) <= int(before) - held // 2) is (can == "True")
