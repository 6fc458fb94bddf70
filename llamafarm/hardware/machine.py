"""A machine described: its processor, main memory and GPUs, as plain facts.

`read_machine` describes the one we run on; everything else in this folder takes a description, so that a
machine that is not at hand can be described too.
"""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llamafarm.hardware.container import cpu_limit
from llamafarm.hardware.memory import read_main_memory, run_system_command

# The first of NVIDIA's generations that has bfloat16 and TF32.
AMPERE = (8, 0)
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
# Set to nothing or -1, they hide every GPU on purpose.
_HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
_GET_PYTORCH = "https://pytorch.org/get-started/locally"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU. `kind` is what torch calls it: cuda (NVIDIA and AMD alike) or mps.

    Apple's share the main memory; theirs is what the system lets them use of it.
    """

    kind: str
    name: str
    memory_bytes: int
    free_bytes: int
    compute_capability: tuple[int, int] | None = None
    is_rocm: bool = False
    has_bf16: bool = False


@dataclass(frozen=True, slots=True)
class GpuTrouble:
    """Why a GPU that is there cannot be used, and what would help."""

    problem: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine has. Cores and `available_bytes` of main memory respect the limits of a container.

    `torch_build` is what PyTorch was built for, such as `CUDA 12.8` or `ROCm 6.4`; empty for neither.
    """

    system: str
    architecture: str
    cpu_name: str
    num_cores: int
    cpu_flags: frozenset[str]
    memory_bytes: int
    available_bytes: int
    gpus: tuple[Gpu, ...] = ()
    gpu_trouble: GpuTrouble | None = None
    torch_build: str = ""

    @property
    def bf16_flags(self) -> tuple[str, ...]:
        """Return the processor's names of instructions for bfloat16; a probe says what they are worth."""
        return tuple(sorted(self.cpu_flags & _BF16_FLAGS))


@cache
def read_machine() -> Machine:
    """Describe this machine, as it is at the first call."""
    import torch

    total, available = read_main_memory()
    gpus, trouble = _read_gpus(torch)
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        cpu_name=_read_cpu_name(),
        num_cores=_count_cores(),
        cpu_flags=_read_cpu_flags(),
        memory_bytes=total,
        available_bytes=available,
        gpus=gpus,
        gpu_trouble=trouble,
        torch_build=_torch_build(torch.version.cuda, torch.version.hip),
    )


@cache
def read_nvidia_driver() -> str | None:
    """Return the version of NVIDIA's driver; None where there is none, or no GPU that it drives."""
    printed = run_system_command("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return printed.splitlines()[0].strip() if printed else None


def explain_absence(
    torch_version: str, torch_build: str, *, nvidia_driver: str | None, has_amd: bool, is_hidden: bool = False
) -> GpuTrouble | None:
    """Return why PyTorch sees no GPU although the system has one; None if it has none, or it is hidden."""
    if is_hidden:
        return None
    if nvidia_driver is not None and torch_build.startswith("CUDA"):
        return GpuTrouble(
            f"PyTorch {torch_version}, built for {torch_build}, cannot use the NVIDIA GPU with driver "
            f"{nvidia_driver}",
            f"Update the driver, or install a PyTorch built for the CUDA that it has ({_GET_PYTORCH}).",
        )
    if nvidia_driver is not None:
        return GpuTrouble(
            f"the NVIDIA GPU (driver {nvidia_driver}) is not used: "
            f"PyTorch {torch_version} is built without CUDA",
            f"Install a PyTorch that is built with CUDA ({_GET_PYTORCH}).",
        )
    if has_amd and not torch_build.startswith("ROCm"):
        return GpuTrouble(
            f"the AMD GPU is not used: PyTorch {torch_version} is built without ROCm",
            f"Where ROCm supports this GPU, install a PyTorch that is built with it ({_GET_PYTORCH}).",
        )
    return None


def _torch_build(cuda: str | None, hip: str | None) -> str:
    return f"ROCm {hip}" if hip else f"CUDA {cuda}" if cuda else ""


def _count_cores() -> int:
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit()
    return num_cores if limit is None else min(num_cores, max(math.ceil(limit), 1))


def _read_cpu_name() -> str:
    if platform.system() == "Darwin":
        return run_system_command("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read_cpu_flags() -> frozenset[str]:
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    if platform.system() == "Darwin":
        has_bf16 = run_system_command("sysctl", "-n", "hw.optional.arm.FEAT_BF16") == "1"
        return frozenset({"bf16"} if has_bf16 else ())
    return frozenset()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def _read_gpus(torch: Any) -> tuple[tuple[Gpu, ...], GpuTrouble | None]:
    """Return the GPUs that torch can use, and why it cannot use one that is there."""
    if torch.cuda.is_available():
        try:
            return tuple(_read_cuda(torch, index) for index in range(torch.cuda.device_count())), None
        except RuntimeError as error:  # the first question may find a GPU that another process fills or holds
            first_line = str(error).partition("\n")[0]
            return (), GpuTrouble(
                f"the GPU does not answer: {first_line}",
                "See what holds it (nvidia-smi, rocm-smi), and end that, or choose a GPU that is free.",
            )
    if torch.backends.mps.is_available():
        limit = int(torch.mps.recommended_max_memory())
        free = max(limit - int(torch.mps.driver_allocated_memory()), 0)
        has_bf16 = torch.backends.mps.is_macos_or_newer(14, 0)
        return (Gpu("mps", _read_cpu_name(), limit, free, has_bf16=has_bf16),), None
    return (), explain_absence(
        torch.__version__,
        _torch_build(torch.version.cuda, torch.version.hip),
        nvidia_driver=read_nvidia_driver(),
        has_amd=Path("/dev/kfd").exists(),
        is_hidden=any(os.environ.get(name) in ("", "-1") for name in _HIDING),
    )


def _read_cuda(torch: Any, index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    free_bytes, _ = torch.cuda.mem_get_info(index)
    is_rocm = torch.version.hip is not None
    capability = (int(properties.major), int(properties.minor))
    return Gpu(
        kind="cuda",
        name=str(properties.name),
        memory_bytes=int(properties.total_memory),
        free_bytes=int(free_bytes),
        compute_capability=capability,
        is_rocm=is_rocm,
        # On NVIDIA's older GPUs torch says yes, and emulates it.
        has_bf16=torch.cuda.is_bf16_supported() if is_rocm else capability >= AMPERE,
    )
