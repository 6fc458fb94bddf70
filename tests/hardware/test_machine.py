"""This machine, read as it is, and the limits of a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafarm.hardware import machine
from llamafarm.hardware.machine import read_machine, read_main_memory


def test_this_machine_has_a_processor_and_memory() -> None:
    found = read_machine()
    assert found.num_cores >= 1
    assert found.cpu_name
    assert 0 < found.available_bytes <= found.memory_bytes


@pytest.mark.parametrize(
    ("limit", "usage", "expected"),
    [
        ("1000000000", "300000000", (10**9, 7 * 10**8)),
        ("1000000000", "2000000000", (10**9, 0)),
    ],
)
def test_the_limit_of_a_container_is_the_memory(
    limit: str, usage: str, expected: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "max").write_text(limit + "\n")
    (tmp_path / "current").write_text(usage + "\n")
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", ((tmp_path / "max", tmp_path / "current"),))
    assert read_main_memory() == expected


@pytest.mark.parametrize("limit", ["max", str(2**63)])
def test_a_container_without_a_limit_has_the_machines_memory(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, _ = read_main_memory()
    (tmp_path / "max").write_text(limit)
    monkeypatch.setattr(machine, "_CGROUP_LIMITS", ((tmp_path / "max", tmp_path / "gone"),))
    assert read_main_memory()[0] == total
