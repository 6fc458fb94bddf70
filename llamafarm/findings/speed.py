"""Where the time of a run goes, and what to change where it goes to the wrong place."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamafarm.findings.finding import Finding

# Before so many seconds a share says nothing: the first steps of a run are slower than the rest.
_FEWEST_SECONDS = 30.0
_MOST_FOR_DATA = 0.1
_MOST_FOR_EVALUATION = 0.25
_MOST_FOR_SAVING = 0.1
# The guide: GPU utilization stays above 80 %.
LEAST_UTILIZATION = 0.8
_FEWEST_SAMPLES = 10


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where a run's time went so far. `data` is the part of `steps` in which packs were laid out."""

    steps: float
    data: float
    evaluations: float
    saves: float
    num_evaluations: int
    num_saves: int
    num_steps: int

    @property
    def total(self) -> float:
        """Return all of it."""
        return self.steps + self.evaluations + self.saves


def find_slowness(
    seconds: Seconds, utilization: float | None = None, num_utilization_samples: int = 0
) -> list[Finding]:
    """Return what takes more of the time than it should; `utilization` of the GPU is from 0 to 1."""
    if seconds.total < _FEWEST_SECONDS:
        return []
    found = [_find_slow_data(seconds), _find_evaluation(seconds), _find_saving(seconds)]
    if utilization is not None and num_utilization_samples >= _FEWEST_SAMPLES:
        found.append(_find_idle_gpu(seconds, utilization))
    return [one for one in found if one is not None]


def _find_slow_data(seconds: Seconds) -> Finding | None:
    part = seconds.data / max(seconds.steps, 1e-9)
    if part <= _MOST_FOR_DATA:
        return None
    return Finding(
        "slow-data",
        "warning",
        f"{part:.0%} of the steps' time ({seconds.data:.0f} s) went into reading rows and laying out packs",
        "The device waits for data: encoded rows lie on a slow disk, or the processor has other work",
        "data_preprocessing.cache_dir: a folder on a fast local disk",
    )


def _find_evaluation(seconds: Seconds) -> Finding | None:
    part = seconds.evaluations / seconds.total
    if part <= _MOST_FOR_EVALUATION or seconds.num_evaluations < 2:
        return None
    # As rare as it takes to come to a tenth of the steps' time.
    steps = _steps_between(seconds.evaluations / seconds.num_evaluations, 0.1, seconds)
    return Finding(
        "evaluation-overhead",
        "warning",
        f"{part:.0%} of the time ({seconds.evaluations:.0f} s) went into {seconds.num_evaluations} "
        "evaluations",
        "Evaluating so often slows the run by as much",
        f"training_args.eval_strategy: steps with eval_steps: {steps}, or fewer evaluation rows "
        "(dataset.eval_split)",
    )


def _find_saving(seconds: Seconds) -> Finding | None:
    part = seconds.saves / seconds.total
    if part <= _MOST_FOR_SAVING or seconds.num_saves < 2:
        return None
    steps = _steps_between(seconds.saves / seconds.num_saves, 0.03, seconds)
    return Finding(
        "checkpoint-overhead",
        "warning",
        f"{part:.0%} of the time ({seconds.saves:.0f} s) went into {seconds.num_saves} checkpoints",
        "Saving so often slows the run by as much",
        f"training_args.save_strategy: steps with save_steps: {steps}",
    )


def _steps_between(each: float, part: float, seconds: Seconds) -> int:
    """Return how many steps take so long that what takes `each` seconds is `part` of their time."""
    seconds_per_step = seconds.steps / max(seconds.num_steps, 1)
    return math.ceil(each / (part * max(seconds_per_step, 1e-6)))


def _find_idle_gpu(seconds: Seconds, utilization: float) -> Finding | None:
    if utilization >= LEAST_UTILIZATION:
        return None
    if seconds.data > 0.05 * seconds.steps:
        cause, remedy = "it waits for data", "data_preprocessing.cache_dir: a folder on a fast local disk"
    elif seconds.evaluations + seconds.saves > 0.1 * seconds.total:
        cause = "evaluations and checkpoints come often"
        remedy = "training_args.eval_steps and save_steps: twice what they are"
    else:
        cause = "a step has too little work for it"
        remedy = (
            "training_args.per_device_train_batch_size: twice what it is, with half the "
            "gradient_accumulation_steps; a small model cannot fill a large GPU"
        )
    return Finding(
        "idle-gpu",
        "warning",
        f"the GPU was busy {utilization:.0%} of the time",
        f"It should be above {LEAST_UTILIZATION:.0%}; most likely {cause}",
        remedy,
    )
