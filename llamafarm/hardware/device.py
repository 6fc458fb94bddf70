"""The device of a run, chosen among those of a machine, and the memory that it has."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

from llamafarm.errors import MachineError
from llamafarm.hardware.machine import Gpu, Machine, read_machine


@dataclass(frozen=True, slots=True)
class Device:
    """The device of a run. `kind` is what torch calls it: cuda (NVIDIA and AMD alike), mps or cpu.

    `gpu` has the facts of a GPU; None is the processor.
    """

    kind: str
    description: str
    why: str
    gpu: Gpu | None = None

    @property
    def name(self) -> str:
        """Return what the device calls itself, without its memory."""
        return self.gpu.name if self.gpu is not None else "CPU"

    @property
    def memory_gb(self) -> float:
        """Return a GPU's whole memory in GiB, which is what its maker sells as GB; 0 for the processor."""
        return self.gpu.memory_bytes / 2**30 if self.gpu is not None else 0.0


def find_device(wanted: str, machine: Machine | None = None) -> Device:
    """Return the device for `wanted`: auto, cuda, rocm, mps or cpu, on a machine, this one unless given.

    Raises `MachineError`, naming what there is, if the machine does not have it.
    """
    machine = machine or read_machine()
    if wanted == "cpu" or (wanted == "auto" and not machine.gpus):
        why = "as the strategy says" if wanted == "cpu" else "what this machine has"
        return Device("cpu", f"CPU, {machine.num_cores} cores", why)
    for gpu in machine.gpus:
        if wanted in ("auto", _kind_of(gpu)):
            why = "what this machine has" if wanted == "auto" else "as the strategy says"
            return Device(gpu.kind, f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB", why, gpu)
    others = [_kind_of(gpu) for gpu in machine.gpus[:1]] or ["cpu"]
    raise MachineError(
        f"there is no {wanted} device on this machine",
        where="hardware.device",
        remedy=f"Write device: {others[0]}, which is there, or device: auto.",
    )


def available_memory_bytes(device: Device, machine: Machine | None = None) -> int:
    """Return the memory that can be had for training: what is free on a GPU, or of main memory."""
    return device.gpu.free_bytes if device.gpu is not None else (machine or read_machine()).available_bytes


def peak_memory_bytes(device_kind: str) -> int:
    """Return the most memory that this process has held: the GPU's on CUDA, else main memory."""
    if device_kind == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _kind_of(gpu: Gpu) -> str:
    """Return the word of `hardware.device` for a GPU."""
    return "rocm" if gpu.is_rocm else gpu.kind
