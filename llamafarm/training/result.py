"""How a run ended, in figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. Losses are in nats per supervised token; evaluation is None without its rows.

    `train_seconds` are those of all steps, from the batch asked for to the update, without evaluation and
    saving; `part_of_peak` is what the steps' operations are of the speed of plain matrix products.
    """

    final_model: Path
    num_steps: int
    num_epochs: float
    train_loss: float
    eval_loss: float | None
    eval_perplexity: float | None
    best_step: int | None
    stopped_early: bool
    num_tokens: int
    num_supervised_tokens: int
    train_seconds: float
    flops_per_second: float
    part_of_peak: float
    peak_memory_bytes: int
