"""Devices, chosen on machines that are described, and what this one really has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from llamafarm.errors import MachineError
from llamafarm.hardware.device import available_memory_bytes, find_device
from llamafarm.hardware.machine import Machine

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


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    # In a process of its own: this one may have held more than a test should take.
    script = """if True:
        from llamafarm.hardware.device import peak_memory_bytes
        before = peak_memory_bytes("cpu")
        block = b"x" * (before * 3 // 2)
        during = peak_memory_bytes("cpu")
        del block
        print(before, during, peak_memory_bytes("cpu"))
    """
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    before, during, after = map(int, run.stdout.split())
    assert 2**22 < before < 2**30
    assert before * 3 // 2 <= during <= before * 3
    assert after >= during


@pytest.mark.parametrize(("gpus", "memory_gb"), [(("RTX 3090",), 24), (("M1",), 32), ((), 0)])
def test_the_memory_of_an_apple_chip_is_the_machines(
    described: Describe, gpus: tuple[str, ...], memory_gb: float
) -> None:
    assert find_device("auto", described(*gpus)).memory_gb == memory_gb
