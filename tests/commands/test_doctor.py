"""`doctor`: what is on this machine, for people and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llamafarm import terminal
from llamafarm.commands.doctor import describe_devices, doctor
from llamafarm.hardware.machine import Gpu, GpuTrouble, Machine, read_machine


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "mode", terminal.Mode())
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")


def test_every_part_is_told_and_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    doctor()
    said = capsys.readouterr().out
    for part in ("machine", "device CPU", "versions", "tools", "environment"):
        assert f"\n{part}" in said
    assert "CPU-Only Configuration" in said
    assert "GFLOP/s" in said
    assert "hf_secret" not in said


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    doctor(prints_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["environment"]["HF_TOKEN"] == "set"
    assert record["devices"][-1]["device"].startswith("CPU")
    assert record["machine"]["memory_bytes"] > 0
    assert {tool["name"] for tool in record["tools"]} == {"bitsandbytes", "xllamacpp", "Ollama"}


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (None, "compiled for this machine"),
        ("there is no C++ compiler", "torch's, slower: there is no C++ compiler"),
    ],
)
def test_whether_kernels_are_compiled_is_told(
    reason: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamafarm.kernels.cpu.choice.why_not_compiled", lambda: reason)
    (device,) = describe_devices(PLAIN, lambda kind, name: 1e9)
    assert device["kernels"] == told


GIB = 2**30
PLAIN = Machine("Linux", "x86_64", "Some CPU", 8, frozenset({"avx2"}), 16 * GIB, 12 * GIB)
RTX_3090 = Gpu("cuda", "NVIDIA GeForce RTX 3090", 24 * GIB, 23 * GIB, (8, 6), has_bf16=True)
# One that the guide has no row for, and half of whose memory is in use.
RTX_2080_TI = Gpu("cuda", "NVIDIA GeForce RTX 2080 Ti", 11 * GIB, 5 * GIB, (7, 5))
MI300X = Gpu("cuda", "AMD Instinct MI300X", 192 * GIB, 190 * GIB, (9, 4), is_rocm=True, has_bf16=True)
M1 = Gpu("mps", "Apple M1", 11 * GIB, 10 * GIB, has_bf16=True)


def speed(kind: str, name: str) -> float:
    return {"fp32": 1e9, "bf16": 2e9, "fp16": 3e9}[name]


ALL_THREE = "fp32 1 GFLOP/s, bf16 2 GFLOP/s, fp16 3 GFLOP/s"


# GPU, the guide's row, precision, what it can multiply, memory
@pytest.mark.parametrize(
    ("gpu", "row", "precision", "products", "memory"),
    [
        (RTX_3090, "RTX 3090: batches of 4-8", "bf16: ", ALL_THREE, "23.0"),
        (RTX_2080_TI, "the nearest by memory", "fp16: ", "fp32 1 GFLOP/s, fp16 3 GFLOP/s", "5.0"),
        (MI300X, "the nearest by memory", "bf16: ", ALL_THREE, "190.0"),
        # The row of a chip is that of the machine's memory, not of what the system lets the GPU use.
        (M1, "M1: batches of 1-2 rows, models up to 3B", "fp32: ", "fp32 1 GFLOP/s, bf16 2 GFLOP/s", "10.0"),
    ],
)  # fmt: skip
def test_a_described_gpu_is_told_with_its_row(
    gpu: Gpu, row: str, precision: str, products: str, memory: str
) -> None:
    device, processor = describe_devices(replace(PLAIN, gpus=(gpu,)), speed)
    assert gpu.name in device["device"]
    assert row in device["guide"]
    assert device["precision"].startswith(precision)
    assert device["products"] == products
    assert device["memory"] == f"{memory} GiB to be had"
    assert ("compute capability" in device) is (gpu.kind == "cuda" and not gpu.is_rocm)
    assert processor["guide"].startswith("CPU-Only")
    assert "2.0 times as fast" in processor["precision"]


def test_every_gpu_is_told_and_the_first_of_a_kind_is_measured() -> None:
    first, second, _ = describe_devices(replace(PLAIN, gpus=(RTX_3090, RTX_2080_TI)), speed)
    assert "GFLOP/s" in first["products"]
    assert second["products"] == "fp32, fp16"


def test_a_gpu_that_cannot_be_measured_hides_nothing_else() -> None:
    def fail(kind: str, name: str) -> float:
        if kind == "cuda":
            raise RuntimeError("CUDA error: out of memory\nmore")
        return speed(kind, name)

    device, _ = describe_devices(replace(PLAIN, gpus=(RTX_3090,)), fail)
    assert device["products"] == "fp32, bf16, fp16; not measured: CUDA error: out of memory"


def test_a_gpu_that_is_not_used_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = replace(read_machine(), gpu_trouble=GpuTrouble("it is not used", "Do this."))
    monkeypatch.setattr("llamafarm.hardware.machine.read_machine", lambda: machine)
    doctor()
    assert "GPU                         it is not used. Do this.\n" in capsys.readouterr().out
