"""The guide's tables about machines: what a model of a size needs, platforms, GPUs, Apple chips.

`match_gpu_row` and `match_apple_row` tell which row of them a device is; `settings.py` has what each kind of
device is set to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from llamafarm.planning.guide.numbers import Range, show_billions, show_minutes


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model of `num_parameters` needs at least; the time is for 1,000 examples with LoRA."""

    num_parameters: float
    memory_gb: int
    storage_gb: int
    minutes: Range

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        size = f"{self.num_parameters / 1e9:g}B params"
        return size, f"{self.memory_gb}GB", f"{self.storage_gb}GB", show_minutes(self.minutes)


MODEL_SIZES = (
    ModelSize(1e9, 4, 10, Range(30, 60)),
    ModelSize(3e9, 8, 20, Range(60, 120)),
    ModelSize(7e9, 16, 40, Range(120, 240)),
    ModelSize(13e9, 24, 80, Range(240, 480)),
)

# A model that is sold as 3B may have 3.2 billion parameters, and one sold as 7B 7.6.
_NOMINAL = 1.1


def model_size_row(num_parameters: float) -> ModelSize | None:
    """Return the smallest row that a model falls under; None above the largest."""
    return next((row for row in MODEL_SIZES if num_parameters <= row.num_parameters * _NOMINAL), None)


@dataclass(frozen=True, slots=True)
class Platform:
    """A kind of machine and what it is good for. `device_type` is what the guide calls it."""

    name: str
    device_type: str
    optimal_for: str
    key_features: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        return self.name, self.device_type, self.optimal_for, self.key_features


PLATFORMS = (
    Platform("NVIDIA GPU", "CUDA", "All model sizes", "FP16/BF16, Fast training"),
    Platform("Apple Silicon", "MPS", "≤7B models", "Unified memory, Energy efficient"),
    Platform("AMD GPU", "ROCm", "Medium models", "Good price/performance"),
    Platform("CPU Only", "CPU", "Small models/testing", "Universal compatibility"),
)


@dataclass(frozen=True, slots=True)
class GpuRow:
    """An NVIDIA GPU: its memory, and the batch sizes, precisions and largest model that the guide advises."""

    name: str
    memory_gb: Range
    batch_size: Range
    has_fp16: bool
    has_bf16: bool
    max_model: str
    """As printed: 7B, 30B+."""

    @property
    def max_parameters(self) -> float:
        """The number of parameters that `max_model` stands for."""
        return float(self.max_model.rstrip("B+")) * 1e9

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        marks = tuple("✅" if has else "❌" for has in (self.has_fp16, self.has_bf16))
        return self.name, f"{self.memory_gb}GB", str(self.batch_size), *marks, self.max_model


CUDA_GPUS = (
    GpuRow("RTX 3060", Range(12, 12), Range(2, 4), True, False, "7B"),
    GpuRow("RTX 3070", Range(8, 8), Range(1, 2), True, False, "3B"),
    GpuRow("RTX 3080", Range(10, 10), Range(2, 4), True, True, "7B"),
    GpuRow("RTX 3090", Range(24, 24), Range(4, 8), True, True, "13B"),
    GpuRow("RTX 4070 Ti", Range(12, 12), Range(2, 4), True, True, "7B"),
    GpuRow("RTX 4080", Range(16, 16), Range(4, 6), True, True, "7B"),
    GpuRow("RTX 4090", Range(24, 24), Range(6, 8), True, True, "13B"),
    GpuRow("A100", Range(40, 80), Range(8, 16), True, True, "30B+"),
)


@dataclass(frozen=True, slots=True)
class AppleRow:
    """An Apple chip with its unified memory, and the batch sizes and models that the guide advises."""

    name: str
    """As printed: one row may be for two chips, as in `M1 Pro/Max`."""
    memory_gb: Range
    batch_size: Range
    models: Range
    """Numbers of parameters; from 0 where the guide says up to."""
    notes: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""
        models = show_billions(self.models)
        return self.name, f"{self.memory_gb}GB", str(self.batch_size), models, self.notes


APPLE_CHIPS = (
    AppleRow("M1", Range(8, 8), Range(1, 1), Range(0, 1e9), "Basic fine-tuning"),
    AppleRow("M1", Range(16, 16), Range(1, 2), Range(0, 3e9), "Good for small models"),
    AppleRow("M1 Pro/Max", Range(32, 32), Range(2, 4), Range(0, 7e9), "Excellent performance"),
    AppleRow("M2", Range(8, 24), Range(1, 2), Range(1e9, 3e9), "20% faster than M1"),
    AppleRow("M2 Pro/Max", Range(32, 32), Range(2, 4), Range(0, 7e9), "Best for development"),
    AppleRow("M3", Range(8, 24), Range(1, 2), Range(1e9, 3e9), "Latest generation"),
    AppleRow("M3 Pro/Max", Range(36, 128), Range(4, 8), Range(7e9, 13e9), "Production capable"),
)

# A device reports a little less than it is sold with, and a little more where a GB is 10^9 bytes.
_MEMORY_TOLERANCE = 0.1
# Less for a GPU that is not in the table: one of 11 GB is not taken for one of 12.
_LESS_TOLERANCE = 0.05
# What follows a model's name and makes it another model.
_VARIANTS = {"ti", "super", "d", "gre", "pro", "max", "ultra"}


def match_gpu_row(device_name: str, memory_gb: float) -> GpuRow | None:
    """Return the row of a GPU by the name that its driver reports and its memory; None if it has none.

    A Ti or SUPER is another GPU than the one without, and so is one of the same name with other memory.
    """
    for row in CUDA_GPUS:
        if _is_named(device_name, row.name) and _has_memory(row.memory_gb, memory_gb):
            return row
    return None


def match_apple_row(chip_name: str, memory_gb: float) -> AppleRow | None:
    """Return the row of an Apple chip, such as `Apple M1 Pro`, with its memory; None if it has none."""
    for row in APPLE_CHIPS:
        generation, _, kinds = row.name.partition(" ")
        names = [f"{generation} {kind}" for kind in kinds.split("/")] if kinds else [generation]
        if any(_is_named(chip_name, name) for name in names) and _has_memory(row.memory_gb, memory_gb):
            return row
    return None


def largest_gpu_row_within(memory_gb: float) -> GpuRow | None:
    """Return the row of the largest GPU whose memory a device has; of equal ones the most cautious."""
    fitting = [row for row in CUDA_GPUS if row.memory_gb.low * (1 - _LESS_TOLERANCE) <= memory_gb]
    return max(fitting, key=lambda row: (row.memory_gb.low, -row.batch_size.high), default=None)


def largest_apple_row_within(memory_gb: float) -> AppleRow | None:
    """Return the row of the Apple chip with the most memory within a device's, the most cautious one."""
    fitting = [row for row in APPLE_CHIPS if row.memory_gb.low * (1 - _LESS_TOLERANCE) <= memory_gb]
    return max(fitting, key=lambda row: (row.memory_gb.low, -row.batch_size.high), default=None)


def _is_named(device_name: str, row_name: str) -> bool:
    words, wanted = _words(device_name), _words(row_name)
    for start in range(len(words) - len(wanted) + 1):
        end = start + len(wanted)
        if words[start:end] == wanted:
            return end == len(words) or words[end] not in _VARIANTS
    return False


def _words(name: str) -> list[str]:
    # RTX3090 and RTX-3090 as well as RTX 3090; 4070Ti as well as 4070 Ti.
    spaced = re.sub(r"(?<=rtx)(?=\d)|(?<=\d)(?=(?:ti|super)\b)", " ", name.casefold())
    return re.findall(r"[a-z0-9]+", spaced)


def _has_memory(of_row: Range, memory_gb: float) -> bool:
    return of_row.low * (1 - _MEMORY_TOLERANCE) <= memory_gb <= of_row.high * (1 + _MEMORY_TOLERANCE)
