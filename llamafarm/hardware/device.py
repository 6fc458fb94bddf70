"""The device of a run, chosen among those of a machine, and the memory that it has."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamafarm.errors import MachineError
from llamafarm.hardware.machine import Gpu, Machine, read_machine
from llamafarm.hardware.memory import peak_main_memory_bytes, read_main_memory, reset_peak_main_memory

_FOUND = "what this machine has"


@dataclass(frozen=True, slots=True)
class Device:
    """The device of a run. `kind` is what torch calls it: cuda (NVIDIA and AMD alike), mps or cpu.

    `gpu` has the facts of a GPU; None is the processor. `memory_gb` is the whole memory in GiB that a GPU is
    sold with as GB, which for Apple's chips is the machine's; 0 for the processor.
    """

    kind: str
    description: str
    why: str
    gpu: Gpu | None = None
    memory_gb: float = 0.0

    @property
    def word(self) -> str:
        """Return what `hardware.device` calls it: cuda, rocm, mps or cpu."""
        return "rocm" if self.gpu is not None and self.gpu.is_rocm else self.kind

    @property
    def name(self) -> str:
        """Return what the device calls itself, without its memory."""
        return self.gpu.name if self.gpu is not None else "CPU"


def devices_of(machine: Machine) -> tuple[Device, ...]:
    """Return every device of a machine, in the order of `auto`: CUDA and ROCm, MPS, the processor."""
    gpus = sorted(machine.gpus, key=lambda gpu: gpu.kind != "cuda")
    trouble = f"; {machine.gpu_trouble.problem}" if machine.gpu_trouble else ""
    processor = Device("cpu", f"CPU, {machine.num_cores} cores", f"{_FOUND}{trouble}")
    return (*(_describe_gpu(gpu, machine) for gpu in gpus), processor)


def _describe_gpu(gpu: Gpu, machine: Machine) -> Device:
    sold_bytes = machine.memory_bytes if gpu.kind == "mps" else gpu.memory_bytes
    description = f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB"
    return Device(gpu.kind, description, _FOUND, gpu, sold_bytes / 2**30)


def find_device(wanted: str, machine: Machine | None = None) -> Device:
    """Return the device for `wanted`: auto, cuda, rocm, mps or cpu, on a machine, this one unless given.

    Raises `MachineError`, naming what there is, if the machine does not have it.
    """
    machine = machine or read_machine()
    devices = devices_of(machine)
    if wanted == "auto":
        return devices[0]
    for device in devices:
        if device.word == wanted:
            return replace(device, why="as the strategy says")
    problem = f"there is no {wanted} device on this machine"
    remedy = f"Write device: {devices[0].word}, which is there, or device: auto."
    if wanted in ("cuda", "rocm") and machine.gpu_trouble is not None:
        problem = f"{problem}: {machine.gpu_trouble.problem}"
        remedy = f"{machine.gpu_trouble.remedy} Or write device: {devices[0].word}, which is there."
    elif machine.torch_build:
        problem = f"{problem}, and PyTorch is built for {machine.torch_build}"
    raise MachineError(problem, where="hardware.device", remedy=remedy)


def available_memory_bytes(device: Device, machine: Machine | None = None) -> int:
    """Return the memory that can be had for training: what is free on a GPU, or of main memory.

    Main memory is asked for as it is now, unless a machine is given.
    """
    if device.gpu is not None:
        return device.gpu.free_bytes
    return machine.available_bytes if machine is not None else read_main_memory()[1]


def peak_memory_bytes(device_kind: str) -> int:
    """Return the most memory that this process has held: the GPU's on CUDA, else main memory."""
    if device_kind == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return peak_main_memory_bytes()


def reset_peak_memory(device_kind: str) -> bool:
    """Let the peak of `peak_memory_bytes` start again from now; return whether this system can."""
    if device_kind == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return True
    return reset_peak_main_memory()
