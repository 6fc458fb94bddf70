"""Devices and precision, on machines that are only described."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from llamafarm.errors import MachineError
from llamafarm.hardware.device import (
    Device,
    choose_precision,
    find_device,
    installed_versions,
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with the devices that a test gives it: none at first."""
    has = SimpleNamespace(cuda=False, mps=False, bf16=True)
    gpu = SimpleNamespace(name="Some GPU", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has.cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: has.bf16)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has.mps)
    return has


@pytest.mark.parametrize(
    ("cuda", "mps", "kind"),
    [(False, False, "cpu"), (True, False, "cuda"), (False, True, "mps"), (True, True, "cuda")],
)
def test_auto_takes_the_best_that_is_there(
    machine: SimpleNamespace, cuda: bool, mps: bool, kind: str
) -> None:
    machine.cuda, machine.mps = cuda, mps
    device = find_device("auto")
    assert device.kind == kind
    assert device.description


@pytest.mark.parametrize(
    ("wanted", "kind"), [("cuda", "cuda"), ("rocm", "cuda"), ("mps", "mps"), ("cpu", "cpu")]
)
def test_a_device_that_is_there_is_taken_as_asked(machine: SimpleNamespace, wanted: str, kind: str) -> None:
    machine.cuda = machine.mps = True
    assert find_device(wanted).kind == kind


@pytest.mark.parametrize("wanted", ["cuda", "rocm", "mps"])
def test_a_device_that_is_not_there_is_an_error_of_the_machine(machine: SimpleNamespace, wanted: str) -> None:
    machine.cuda, machine.mps = wanted == "mps", wanted in ("cuda", "rocm")
    with pytest.raises(MachineError) as caught:
        find_device(wanted)
    assert wanted in caught.value.problem
    assert caught.value.where == "hardware.device"
    assert "auto" in caught.value.remedy


def test_a_gpu_is_described_by_its_name_and_memory(machine: SimpleNamespace) -> None:
    machine.cuda = True
    assert find_device("auto").description == "Some GPU, 24 GiB"


# Device, mixed_precision, use_fp16, use_bf16, a GPU with bf16; what is chosen, and where that was said.
PRECISIONS = [
    ("cpu", None, None, None, True, "fp32", "cpu"),
    ("mps", None, None, None, True, "fp32", "mps"),
    ("cuda", None, None, None, True, "bf16", "GPU"),
    ("cuda", None, None, None, False, "fp16", "GPU"),
    ("cuda", "no", None, None, True, "fp32", "hardware.optimization"),
    ("cuda", "fp16", None, None, True, "fp16", "hardware.optimization"),
    ("cuda", "bf16", None, None, True, "bf16", "hardware.optimization"),
    ("cuda", "fp16", False, True, True, "fp16", "hardware.optimization"),
    ("cuda", "no", True, True, True, "fp32", "hardware.optimization"),
    ("cuda", None, True, None, True, "fp16", "hardware.precision.cuda"),
    ("cuda", None, None, True, True, "bf16", "hardware.precision.cuda"),
    ("cuda", None, True, True, True, "bf16", "hardware.precision.cuda"),
    ("cuda", None, False, False, True, "fp32", "cuda"),
    ("cpu", None, False, False, True, "fp32", "cpu"),
    ("cpu", None, None, True, True, "bf16", "hardware.precision.cpu"),
    ("cpu", "bf16", None, None, True, "bf16", "hardware.optimization"),
    ("cpu", "no", None, True, True, "fp32", "hardware.optimization"),
    ("mps", "bf16", None, None, True, "bf16", "hardware.optimization"),
]


@pytest.mark.parametrize(("kind", "mixed", "use_fp16", "use_bf16", "has_bf16", "name", "why"), PRECISIONS)
def test_the_precision_follows_from_strategy_and_device(
    machine: SimpleNamespace,
    kind: str,
    mixed: str | None,
    use_fp16: bool | None,
    use_bf16: bool | None,
    has_bf16: bool,
    name: str,
    why: str,
) -> None:
    machine.bf16 = has_bf16
    choice = choose_precision(Device(kind, "d", "w"), mixed, use_fp16=use_fp16, use_bf16=use_bf16)
    assert choice.name == name
    assert why in choice.why


@pytest.mark.parametrize(
    ("kind", "mixed", "use_fp16", "use_bf16"),
    [
        ("cpu", "fp16", None, None),
        ("mps", "fp16", None, None),
        ("cpu", None, True, None),
        ("mps", None, True, False),
        ("cuda", "bf16", None, None),
        ("cuda", None, None, True),
        ("cuda", None, True, True),
    ],
)
def test_a_precision_that_the_device_cannot_do_is_an_error_of_the_machine(
    machine: SimpleNamespace, kind: str, mixed: str | None, use_fp16: bool | None, use_bf16: bool | None
) -> None:
    machine.bf16 = False
    with pytest.raises(MachineError) as caught:
        choose_precision(Device(kind, "Old GPU", "w"), mixed, use_fp16=use_fp16, use_bf16=use_bf16)
    error = caught.value
    assert "fp16" in error.problem + error.remedy
    assert error.where.startswith("hardware.")


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


def test_the_versions_are_those_that_are_installed() -> None:
    versions = installed_versions()
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {
        "python",
        "torch",
        "transformers",
        "peft",
        "tokenizers",
        "safetensors",
        "numpy",
    } <= versions.keys()
