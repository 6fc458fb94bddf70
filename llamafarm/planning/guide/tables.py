"""All tables of the guide with their headings, in its order, as text: what the documentation is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from llamafarm.planning.guide import advice, machines, parameters


class Row(Protocol):
    """A row of a table, whatever its fields."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as the guide prints it."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the guide: the heading above it, the names of its columns, its rows."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Row]


TABLES = (
    Table(
        "Minimum Requirements by Model Size",
        ("Model Size", "VRAM/RAM", "Storage", "Training Time*"),
        machines.MODEL_SIZES,
    ),
    Table(
        "Supported Hardware Platforms",
        ("Platform", "Device Type", "Optimal For", "Key Features"),
        machines.PLATFORMS,
    ),
    Table(
        "Core LoRA Parameters",
        ("Parameter", "Range", "Default", "Description", "When to Adjust"),
        parameters.LORA_PARAMETERS,
    ),
    Table(
        "Recommended LoRA Settings by Model Size",
        ("Model Size", "Rank (r)", "Alpha", "Dropout", "Target Modules"),
        parameters.LORA_BY_SIZE,
    ),
    Table(
        "Training Hyperparameters",
        ("Parameter", "Description", "Typical Range", "Impact"),
        parameters.HYPERPARAMETERS,
    ),
    Table(
        "Evaluation Parameters",
        ("Parameter", "Description", "Recommended", "Purpose"),
        parameters.EVALUATION,
    ),
    Table(
        "Generation Control Parameters",
        ("Parameter", "Description", "Range", "Effect"),
        parameters.GENERATION,
    ),
    Table(
        "CUDA GPU Recommendations",
        ("GPU Model", "VRAM", "Batch Size", "FP16", "BF16", "Max Model"),
        machines.CUDA_GPUS,
    ),
    Table(
        "Apple Silicon Recommendations",
        ("Chip", "Memory", "Batch Size", "Recommended Models", "Notes"),
        machines.APPLE_CHIPS,
    ),
    Table("Train/Eval Split Strategies", ("Split Ratio", "Use Case", "Pros", "Cons"), advice.SPLITS),
    Table(
        "Evaluation Metrics to Monitor",
        ("Metric", "What It Measures", "Good Values", "Warning Signs"),
        advice.METRICS,
    ),
    Table(
        "Out of Memory (OOM) Errors",
        ("Solution", "Memory Savings", "Performance Impact"),
        advice.OUT_OF_MEMORY,
    ),
    Table("Slow Training", ("Issue", "Solution", "Impact"), advice.SLOW_TRAINING),
    Table("Poor Model Quality", ("Symptom", "Likely Cause", "Solution"), advice.POOR_QUALITY),
    Table("Strategy Selection Guide", ("Use Case", "Strategy", "Key Features"), advice.STRATEGY_SELECTION),
)
