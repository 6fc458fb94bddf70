"""What follows from the machine: device, precision, checkpointing, and how a step's rows are divided."""

from __future__ import annotations

import math
from collections.abc import Iterator

from llamafarm.planning.guide.machines import AppleRow, GpuRow, match_gpu_row
from llamafarm.planning.guide.match import find_device_row
from llamafarm.planning.guide.settings import (
    CHECKPOINTING_BELOW_GB,
    CHECKPOINTING_FROM_PARAMETERS,
    SettingGroup,
    device_settings,
)
from llamafarm.planning.recommend.facts import NEARLY, Facts, Recommendation

_CHECKPOINTING = "hardware.optimization.gradient_checkpointing"
_MIXED = "hardware.optimization.mixed_precision"
_BATCH = "training_args.per_device_train_batch_size"
_ACCUMULATION = "training_args.gradient_accumulation_steps"
_EFFECTIVE = "guide, Gradient Accumulation: effective batch size"


def recommend_hardware(facts: Facts) -> Iterator[Recommendation]:
    """Yield the `hardware` section."""
    settings = device_settings(facts.device)
    yield Recommendation("hardware.device", facts.device, f"guide, {settings.title}")
    yield from _precision(facts, settings)
    if facts.num_parameters >= CHECKPOINTING_FROM_PARAMETERS:
        yield Recommendation(_CHECKPOINTING, True, "guide, Gradient Checkpointing: training 7B+ models")
    elif facts.device == "cuda":
        is_small = facts.memory_gb < CHECKPOINTING_BELOW_GB * NEARLY
        has = "the GPU has" if is_small else "for a GPU with"
        rule = f"guide, Gradient Checkpointing: {has} <{CHECKPOINTING_BELOW_GB}GB VRAM"
        yield Recommendation(_CHECKPOINTING, is_small, rule)
    else:
        yield from _from_guide(settings, _CHECKPOINTING)


def recommend_batches(facts: Facts, case: SettingGroup) -> list[Recommendation]:
    """Return batch size and accumulation: the rows of a step are the use case's, the device divides them."""
    batch = int(case.number(_BATCH) or 0)
    accumulation = int(case.number(_ACCUMULATION) or 0)
    of_case = f"guide, use case {case.title}"
    if facts.device == "cpu":
        num_rows = batch * accumulation or int(device_settings("cpu").number(_on_device(_ACCUMULATION)) or 1)
        rule = f"guide, {device_settings('cpu').title}: simulate larger batches"
        if batch * accumulation:
            rule += f"; the {num_rows} rows are the use case's {batch} x {accumulation}"
        return [
            Recommendation(_BATCH, 1, "guide, Strategy Selection Guide: CPU Only, small batches"),
            Recommendation(_ACCUMULATION, num_rows, rule),
        ]
    limit, of_device = _largest_batch(facts)
    num_rows = (batch or limit) * (accumulation or 1)
    size = min(batch or limit, limit)
    by_case = f"{of_case}; this device takes up to {limit}"
    return [
        Recommendation(_BATCH, size, by_case if batch and size == batch else of_device),
        Recommendation(
            _ACCUMULATION,
            math.ceil(num_rows / size),
            f"{_EFFECTIVE} {num_rows}, the use case's" if batch else f"{_EFFECTIVE} {num_rows}",
        ),
    ]


def _on_device(path: str) -> str:
    return path.replace("training_args", "hardware.optimization")


def _largest_batch(facts: Facts) -> tuple[int, str]:
    """Return the most rows at once by the device's row: its least for the largest models that it takes."""
    row, rule = find_row(facts)
    if row is None:
        return 1, rule
    is_large = facts.num_parameters > largest_model_of(row) / 2
    least_or_most = "the least, for a model of this size" if is_large else "the most"
    return int(row.batch_size.low if is_large else row.batch_size.high), f"{rule}, {least_or_most}"


def largest_model_of(row: GpuRow | AppleRow) -> float:
    """Return the number of parameters of the largest model that a row is for."""
    return row.max_parameters if isinstance(row, GpuRow) else row.models.high


def find_row(facts: Facts) -> tuple[GpuRow | AppleRow | None, str]:
    """Return the guide's row for a GPU, and how it was found; there is none for a CPU."""
    row, is_own = find_device_row(facts.device, facts.device_name, facts.memory_gb)
    table = "CUDA GPU" if facts.device == "cuda" else "Apple Silicon"
    name = "less memory than any row" if row is None else row.name
    nearest = "" if row is None or is_own else ", the nearest row by memory"
    return row, f"guide, {table} Recommendations: {name}{nearest}"


def _precision(facts: Facts, settings: SettingGroup) -> Iterator[Recommendation]:
    half = f"hardware.precision.{facts.device}"
    if facts.device != "cuda":
        yield from _from_guide(settings, f"{half}.use_fp16", f"{half}.use_bf16", _MIXED)
        return
    row = match_gpu_row(facts.device_name, facts.memory_gb)
    may_use_bf16 = facts.has_bf16 is True if row is None else row.has_bf16
    uses_bf16 = may_use_bf16 and facts.has_bf16 is not False
    name = "BF16" if uses_bf16 else "FP16"
    if row is not None:
        rule = f"guide, CUDA GPU Recommendations: {row.name}, {name}"
    else:
        why = "only for Ampere+ GPUs, as this one is" if uses_bf16 else "fast, memory efficient"
        rule = f"guide, {settings.title}: {name} {why}"
    yield Recommendation(f"{half}.use_fp16", not uses_bf16, rule)
    yield Recommendation(f"{half}.use_bf16", uses_bf16, rule)
    yield from _from_guide(settings, f"{half}.use_tf32")
    yield Recommendation(_MIXED, name.lower(), rule)


def _from_guide(settings: SettingGroup, *paths: str) -> Iterator[Recommendation]:
    for path in paths:
        if (setting := settings.find(path)) is not None:
            reason = f": {setting.reason}" if setting.reason else ""
            yield Recommendation(path, setting.value, f"guide, {settings.title}{reason}")
