"""Devices, chosen on machines that are described, and what this one really has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llamafarm.errors import MachineError
from llamafarm.hardware.device import available_memory_bytes, devices_of, find_device
from llamafarm.hardware.machine import GpuTrouble, Machine, read_machine

Describe = Callable[..., Machine]


@pytest.mark.parametrize(
    ("gpus", "kind", "words"),
    [((), "cpu", "8 cores"), (("RTX 3090",), "cuda", "24 GiB"), (("MI300X",), "cuda", "192 GiB"),
     (("M1",), "mps", "Apple M1"), (("RTX 2080", "RTX 3090"), "cuda", "2080")],
)  # fmt: skip
def test_auto_takes_the_first_gpu_and_else_the_processor(
    described: Describe, gpus: tuple[str, ...], kind: str, words: str
) -> None:
    device = find_device("auto", described(*gpus))
    assert device.kind == kind
    assert words in device.description


@pytest.mark.parametrize(
    ("gpu", "wanted", "kind"),
    [
        ("RTX 3090", "cuda", "cuda"),
        ("MI300X", "rocm", "cuda"),
        ("M1", "mps", "mps"),
        ("RTX 3090", "cpu", "cpu"),
    ],
)
def test_a_device_that_is_there_is_taken_as_asked(
    described: Describe, gpu: str, wanted: str, kind: str
) -> None:
    device = find_device(wanted, described(gpu))
    assert (device.kind, device.why) == (kind, "as the strategy says")


@pytest.mark.parametrize(
    ("gpus", "wanted", "alternative"),
    [((), "cuda", "cpu"), ((), "mps", "cpu"), (("RTX 3090",), "rocm", "cuda"), (("MI300X",), "cuda", "rocm"),
     (("M1",), "cuda", "mps")],
)  # fmt: skip
def test_a_device_that_is_not_there_is_an_error_that_names_what_is(
    described: Describe, gpus: tuple[str, ...], wanted: str, alternative: str
) -> None:
    with pytest.raises(MachineError) as caught:
        find_device(wanted, described(*gpus))
    assert wanted in caught.value.problem
    assert caught.value.where == "hardware.device"
    assert f"device: {alternative}," in caught.value.remedy


def test_memory_is_a_gpus_own_and_else_the_machines(described: Describe) -> None:
    machine = described("RTX 3090")
    assert available_memory_bytes(find_device("cuda", machine), machine) == 23 * 2**30
    assert available_memory_bytes(find_device("cpu", machine), machine) == 20 * 2**30


@pytest.mark.parametrize(("gpus", "memory_gb"), [(("RTX 3090",), 24), (("M1",), 32), ((), 0)])
def test_the_memory_of_an_apple_chip_is_the_machines(
    described: Describe, gpus: tuple[str, ...], memory_gb: float
) -> None:
    assert find_device("auto", described(*gpus)).memory_gb == memory_gb


def test_every_device_is_there_in_the_order_of_auto(described: Describe) -> None:
    words = [device.word for device in devices_of(described("M1", "RTX 2080", "MI300X"))]
    assert words == ["cuda", "rocm", "mps", "cpu"]


def test_a_gpu_that_is_not_used_is_told_where_auto_takes_the_processor(described: Describe) -> None:
    trouble = GpuTrouble("the NVIDIA GPU is not used: built without CUDA", "Install another PyTorch.")
    machine = replace(described(), gpu_trouble=trouble)
    assert trouble.problem in find_device("auto", machine).why
    assert find_device("cpu", machine).why == "as the strategy says"
    with pytest.raises(MachineError) as caught:
        find_device("cuda", machine)
    assert trouble.problem in caught.value.problem
    assert trouble.remedy in caught.value.remedy
    assert "device: cpu" in caught.value.remedy


def test_a_build_of_the_other_maker_is_named(described: Describe) -> None:
    machine = replace(described(), torch_build="ROCm 7.1")
    with pytest.raises(MachineError, match="is built for ROCm"):
        find_device("cuda", machine)


def test_main_memory_is_asked_for_as_it_is_now() -> None:
    now = available_memory_bytes(find_device("cpu"))
    assert 0 < now <= read_machine().memory_bytes
