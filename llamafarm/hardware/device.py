"""The device of a run, chosen among those of a machine, and the memory that it has."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llamafarm.errors import MachineError
from llamafarm.hardware.machine import Gpu, Machine, read_machine
from llamafarm.hardware.memory import peak_main_memory_bytes, read_main_memory, reset_peak_main_memory


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
    def word(self) -> str:
        """Return what `hardware.device` calls it: cuda, rocm, mps or cpu."""
        return "rocm" if self.gpu is not None and self.gpu.is_rocm else self.kind

    @property
    def name(self) -> str:
        """Return what the device calls itself, without its memory."""
        return self.gpu.name if self.gpu is not None else "CPU"

    @property
    def memory_gb(self) -> float:
        """Return a GPU's whole memory in GiB, which is what its maker sells as GB; 0 for the processor."""
        return self.gpu.memory_bytes / 2**30 if self.gpu is not None else 0.0


def devices_of(machine: Machine) -> tuple[Device, ...]:
    """Return every device of a machine, in the order of `auto`: CUDA and ROCm, MPS, the processor."""
    gpus = sorted(machine.gpus, key=lambda gpu: gpu.kind != "cuda")
    trouble = f"; {machine.gpu_trouble.problem}" if machine.gpu_trouble else ""
    return (
        *(
            Device(gpu.kind, f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB", "what this machine has", gpu)
            for gpu in gpus
        ),
        Device("cpu", f"CPU, {machine.num_cores} cores", f"what this machine has{trouble}"),
    )


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
