"""This machine, read as it is, and why a GPU that is there may not be seen."""

from __future__ import annotations

import pytest

from llamafarm.hardware.machine import explain_absence, read_machine


def test_this_machine_has_a_processor_and_memory() -> None:
    found = read_machine()
    assert found.num_cores >= 1
    assert found.cpu_name
    assert 0 < found.available_bytes <= found.memory_bytes
    assert set(found.bf16_flags) <= found.cpu_flags


# what PyTorch is built for, NVIDIA's driver, whether there is an AMD GPU, what the problem and the remedy say
ABSENCES = [
    ("", "580.1", False, "NVIDIA GPU (driver 580.1) is not used", "built with CUDA"),
    ("ROCm 7.1", "580.1", False, "built without CUDA", "built with CUDA"),
    ("CUDA 13.0", "470.2", False, "cannot use the NVIDIA GPU with driver 470.2", "Update the driver"),
    ("", None, True, "the AMD GPU is not used", "built with it"),
    ("CUDA 13.0", None, True, "built without ROCm", "built with it"),
]


@pytest.mark.parametrize(("build", "driver", "has_amd", "problem", "remedy"), ABSENCES)
def test_a_gpu_that_is_there_and_not_seen_is_told_with_what_would_help(
    build: str, driver: str | None, has_amd: bool, problem: str, remedy: str
) -> None:
    trouble = explain_absence("2.13.0", build, nvidia_driver=driver, has_amd=has_amd)
    assert trouble is not None
    assert problem in trouble.problem
    assert remedy in trouble.remedy


@pytest.mark.parametrize(
    ("build", "driver", "has_amd", "is_hidden"),
    [("", None, False, False), ("CUDA 13.0", None, False, False), ("ROCm 7.1", None, True, False),
     ("", "580.1", False, True)],
)  # fmt: skip
def test_no_trouble_is_told_without_a_gpu_or_where_it_is_hidden_on_purpose(
    build: str, driver: str | None, has_amd: bool, is_hidden: bool
) -> None:
    told = explain_absence("2.13.0", build, nvidia_driver=driver, has_amd=has_amd, is_hidden=is_hidden)
    assert told is None
