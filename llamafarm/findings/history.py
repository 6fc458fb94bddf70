"""A run's figures as arrays. Axes: N, logged steps; E, evaluations."""

from __future__ import annotations

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
    num_train_rows: int = 0
    num_eval_rows: int = 0
    num_leaked_rows: int = 0


class History:
    """The lines of `metrics.jsonl` that a run has written so far.

    Losses are in nats per supervised token. A line of step 0 is the evaluation before training. Values that
    were not finite are null in the file and infinite here.
    """

    def __init__(self, lines: Sequence[Mapping[str, Any]]) -> None:
        trained = [line for line in lines if line["step"] > 0]
        evaluated = [line for line in lines if "eval_loss" in line and line.get("eval_supervised_tokens", 1)]
        evaluated = [line for line in evaluated if line["eval_loss"] is not None]
        self.steps_N = np.array([line["step"] for line in trained], np.int64)
        self.epochs_N = np.array([line["epoch"] for line in trained])
        self.train_losses_N = _finite([line["train_loss"] for line in trained])
        self.learning_rates_N = np.array([line["learning_rate"] for line in trained], np.float64)
        self.grad_norms_N = _finite([line["grad_norm"] for line in trained])
        self.supervised_tokens_N = np.array([line["supervised_tokens"] for line in trained], np.float64)
        self.eval_steps_E = np.array([line["step"] for line in evaluated], np.int64)
        self.eval_epochs_E = np.array([line["epoch"] for line in evaluated])
        self.eval_losses_E = _finite([line["eval_loss"] for line in evaluated])

    def __len__(self) -> int:
        return len(self.steps_N)

    @cached_property
    def smoothed_losses(self) -> NDArray[np.float64]:
        """Return the training losses (N,) as running medians over a twentieth of the lines, at least 3."""
        return running_median(self.train_losses_N, max(3, len(self) // 20))

    @cached_property
    def start_loss(self) -> float:
        """Return the training loss before anything was learnt: that of the first line, or those around it.

        The larger of both, because a loss may fall within a few steps.
        """
        few = self.train_losses_N[: max(1, min(5, len(self) // 10))]
        return float(max(few[0], np.median(few)))

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


def _finite(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.inf if value is None else value for value in values], np.float64)
