"""A run's figures as arrays. Axes: N, logged steps; E, evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Of an epoch, the part at its end over which the training loss is averaged to stand beside an evaluation.
_RECENT_EPOCHS = 0.5
_FEWEST_RECENT = 5
# Lines that a median is over at most: it is steady by then, and longer ones take their time.
_LONGEST_WINDOW = 50
# Far above every loss and rate that a run can have: what is higher, or no number, stands as this, so that
# all arithmetic stays finite.
_LARGEST = 1e4


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run was set to, as far as findings speak of it; `num_steps` are those planned."""

    num_steps: int
    steps_per_epoch: int
    learning_rate: float
    num_epochs: float
    max_grad_norm: float
    keeps_best: bool = False
    stops_early: bool = False
    num_eval_rows: int = 0
    num_leaked_rows: int = 0


class History:
    """The lines of `metrics.jsonl` that a run has written so far.

    Losses are in nats per supervised token. A line of step 0 is the evaluation before training. Losses that
    were not finite are null in the file and very high here; a gradient's norm is infinite, as it is where
    fp16 skipped a step.
    """

    def __init__(self, lines: Sequence[Mapping[str, Any]]) -> None:
        # A line without supervised tokens is of steps that were skipped.
        trained = [line for line in lines if line["step"] > 0 and line["supervised_tokens"] != 0]
        evaluated = [line for line in lines if line.get("eval_loss") is not None]
        self.steps_N = np.array([line["step"] for line in trained], np.int64)
        self.epochs_N = np.array([line["epoch"] for line in trained], np.float64)
        self.train_losses_N = _numbers(trained, "train_loss", _LARGEST)
        self.learning_rates_N = _numbers(trained, "learning_rate", 0.0)
        self.grad_norms_N = _numbers(trained, "grad_norm", math.inf, largest=1e30)
        self.supervised_tokens_N = _numbers(trained, "supervised_tokens", 0.0, largest=1e15)
        self.eval_steps_E = np.array([line["step"] for line in evaluated], np.int64)
        self.eval_epochs_E = np.array([line["epoch"] for line in evaluated], np.float64)
        self.eval_losses_E = _numbers(evaluated, "eval_loss", _LARGEST)

    def __len__(self) -> int:
        return len(self.steps_N)

    @cached_property
    def smoothed_losses(self) -> NDArray[np.float64]:
        """Return the training losses (N,) as running medians over a twentieth of the lines, 5 to 50."""
        return running_median(self.train_losses_N, min(max(5, len(self) // 20), _LONGEST_WINDOW))

    @cached_property
    def start_loss(self) -> float:
        """Return the training loss before anything was learnt: that of the first line, or those around it.

        The larger of both, because a loss may fall within a few steps; unless it rose far within them.
        """
        few = self.train_losses_N[: max(1, min(5, len(self) // 10))]
        first, usual = float(few[0]), float(np.median(few))
        return first if usual > 1.5 * first + 0.5 else max(first, usual)

    def train_loss_until(self, step: int) -> float:
        """Return the training loss per token of the half epoch up to a step; infinite without any."""
        before_N = self.steps_N <= step
        if not before_N.any():
            return float("inf")
        epoch = self.epochs_N[before_N][-1]
        recent_N = before_N & (self.epochs_N > epoch - _RECENT_EPOCHS)
        if recent_N.sum() < _FEWEST_RECENT:
            recent_N = before_N & (np.arange(len(self)) >= before_N.sum() - _FEWEST_RECENT)
        weights_N = np.maximum(self.supervised_tokens_N[recent_N], 1e-9)
        return float(np.average(self.train_losses_N[recent_N], weights=weights_N))


def running_median(values_N: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the median of each value and those before it, `window` together."""
    if not len(values_N):
        return values_N
    padded = np.concatenate([np.full(window - 1, values_N[0]), values_N])
    medians: NDArray[np.float64] = np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)
    return medians


def _numbers(
    lines: Sequence[Mapping[str, Any]], name: str, missing: float, *, largest: float = _LARGEST
) -> NDArray[np.float64]:
    """Return a figure of each line, at most `largest`, and `missing` where it is no finite number."""
    values = np.array([line[name] for line in lines], np.float64)  # None becomes NaN
    return np.where(np.isfinite(values), np.clip(values, -largest, largest), missing)
