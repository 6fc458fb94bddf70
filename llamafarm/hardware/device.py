"""What this machine has: its device, the precision it computes in, its memory.

torch is imported when a question needs it, so that this floor loads without it.
"""

from __future__ import annotations

import platform
import resource
import sys
from dataclasses import dataclass
from typing import Any

from llamafarm.errors import MachineError


@dataclass(frozen=True, slots=True)
class Device:
    """The device of a run. `kind` is what torch calls it: cuda (NVIDIA and AMD alike), mps or cpu."""

    kind: str
    description: str
    why: str


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """What a step computes in: `fp32`, `bf16` or `fp16`, and why."""

    name: str
    why: str


def find_device(wanted: str) -> Device:
    """Return the device for `wanted`: auto, cuda, rocm, mps or cpu.

    Raises `MachineError` if the machine does not have it.
    """
    import torch

    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        kind, why = ("cuda" if has_cuda else "mps" if has_mps else "cpu"), "what this machine has"
    else:
        kind, why = ("cuda" if wanted == "rocm" else wanted), "as the strategy says"
    if (kind == "cuda" and not has_cuda) or (kind == "mps" and not has_mps):
        raise MachineError(
            f"there is no {wanted} device on this machine",
            where="hardware.device",
            remedy="Write device: auto, which takes what is there, or pass --set hardware.device=auto.",
        )
    return Device(kind, _describe(kind, torch), why)


def choose_precision(
    device: Device, mixed_precision: str | None, *, use_fp16: bool | None, use_bf16: bool | None
) -> PrecisionChoice:
    """Return what to compute in.

    `mixed_precision` wins over the device's `use_*` settings; unset means bf16 or fp16 on a GPU, whichever
    it has in hardware, and fp32 elsewhere. Raises `MachineError` for what the device cannot do.
    """
    import torch

    if mixed_precision is not None:
        name, why = ("fp32" if mixed_precision == "no" else mixed_precision), "hardware.optimization"
    elif use_bf16 or use_fp16:
        name, why = ("bf16" if use_bf16 else "fp16"), f"hardware.precision.{device.kind}"
    elif device.kind == "cuda" and use_fp16 is None and use_bf16 is None:
        name, why = ("bf16" if torch.cuda.is_bf16_supported() else "fp16"), "what this GPU has"
    else:
        name, why = "fp32", f"full precision on {device.kind}"
    if name == "fp16" and device.kind != "cuda":
        raise MachineError(
            f"fp16 is not stable on {device.kind}",
            where="hardware.optimization.mixed_precision",
            remedy="Write mixed_precision: no, or leave it out.",
        )
    if name == "bf16" and device.kind == "cuda" and not torch.cuda.is_bf16_supported():
        raise MachineError(
            f"{device.description} does not compute in bf16",
            where="hardware.optimization.mixed_precision",
            remedy="Write mixed_precision: fp16.",
        )
    return PrecisionChoice(name, why)


def peak_memory_bytes(device_kind: str) -> int:
    """Return the most memory that this process has held: the GPU's on CUDA, else main memory."""
    if device_kind == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def installed_versions() -> dict[str, str]:
    """Return the versions that decide what a run computes."""
    from importlib.metadata import version

    packages = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def _describe(kind: str, torch: Any) -> str:
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if kind == "mps":
        return "Apple GPU (MPS)"
    return f"CPU, {torch.get_num_threads()} threads"
