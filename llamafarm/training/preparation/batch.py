"""Rows per optimizer step where the strategy leaves them to `auto`.

How many rows a step sees follows from how many there are, by the guide's use cases: 1 x 4 for a small
dataset, 4 x 4 in production, 8 x 2 for a large one. How they are cut into packs is the memory's business and
changes no mathematics, so that the device only says how the product is written.
"""

from __future__ import annotations

from llamafarm.strategy.schema import TrainingArgs, fixed_count
from llamafarm.training.preparation.rows import Choice

_SMALL_DATASET_ROWS = 100
_ROWS_PER_STEP_SMALL, _ROWS_PER_STEP = 4, 16


def settle_batch_size(
    args: TrainingArgs, num_train_rows: int, most_rows: int, device: str
) -> tuple[TrainingArgs, list[Choice]]:
    """Return the arguments with numbers for `auto`, and what was chosen.

    `most_rows` is the largest batch that the guide recommends for the device, which `device` names.
    """
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    is_small = num_train_rows < _SMALL_DATASET_ROWS
    rows_per_step = _ROWS_PER_STEP_SMALL if is_small else _ROWS_PER_STEP
    if batch == "auto" and accumulation == "auto":
        fitting = max(rows for rows in range(1, most_rows + 1) if rows_per_step % rows == 0)
        batch, accumulation = fitting, rows_per_step // fitting
    elif batch == "auto":
        batch = max(rows_per_step // fixed_count(accumulation), 1)
    elif accumulation == "auto":
        accumulation = max(round(rows_per_step / batch), 1)
    else:
        return args, []
    update = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    why = f"auto: the guide's steps have {rows_per_step} rows with {num_train_rows} to train on"
    choices = [
        Choice(setting, str(update[setting]), f"{why}, and batches up to {most_rows} on {device}")
        for setting in update
        if getattr(args, setting) == "auto"
    ]
    return args.model_copy(update=update), choices
