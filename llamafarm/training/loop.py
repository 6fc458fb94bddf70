"""When to step, evaluate, save and stop. What each of them does is handed in.

A step is a set of rows: `rows_per_step` of them in the order of their epoch, the last step of an epoch with
what is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llamafarm.evaluation.loss import LossResult
from llamafarm.training.step import StepResult

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Every:
    """A rhythm: every `num_steps` optimizer steps, or, where that is None, at the end of each epoch."""

    num_steps: int | None

    def is_due(self, step: int, *, ends_epoch: bool) -> bool:
        """Return whether something of this rhythm is due after `step`."""
        return ends_epoch if self.num_steps is None else step % self.num_steps == 0


@dataclass(frozen=True, slots=True)
class LoopPlan:
    """Everything that decides which rows each step sees and what happens after it.

    `num_epochs` may have a fraction. From `min_epochs` on, training ends early once the metric has not got
    better for `patience` evaluations; None never ends it. Lower is better for every `metric`. With
    `saves_best`, each new best is saved whether or not `save_every` has come round. With `evaluates_first`
    there is an evaluation before the first step as well, recorded as step 0, which is never the best.
    """

    num_rows: int
    rows_per_step: int
    num_epochs: float
    shuffle: bool
    seed: int
    max_steps: int | None = None
    min_epochs: float = 0.0
    evaluate_every: Every | None = None
    evaluates_first: bool = False
    save_every: Every | None = None
    saves_best: bool = False
    log_every_steps: int = 1
    metric: str = "eval_loss"
    patience: int | None = None
    threshold: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """Return the optimizer steps of one pass over all rows."""
        return math.ceil(self.num_rows / self.rows_per_step)

    @property
    def num_steps(self) -> int:
        """Return the optimizer steps of the whole run, if nothing ends it early."""
        steps = max(1, math.ceil(self.num_epochs * self.steps_per_epoch - 1e-9))
        return min(steps, self.max_steps) if self.max_steps else steps

    def rows_of_step(self, step: int) -> list[int]:
        """Return the indices of the rows that optimizer step `step`, from 1, sees."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        start, end = place * self.rows_per_step, min((place + 1) * self.rows_per_step, self.num_rows)
        if not self.shuffle:
            return list(range(start, end))
        rows: list[int] = order_of_epoch(self.num_rows, epoch, self.seed)[start:end].tolist()
        return rows


@dataclass(slots=True)
class LoopState:
    """How far a run is, and the best it has seen."""

    step: int = 0
    best_metric: float = math.inf
    best_step: int = 0
    num_evaluations_without_better: int = 0
    stopped_early: bool = False


@dataclass(slots=True)
class StepRecord:
    """What one logged step is remembered by: means over the steps since the last record."""

    step: int
    epoch: float
    loss_sum: float = 0.0
    num_tokens: int = 0
    num_supervised_tokens: int = 0
    grad_norm: float = 0.0
    evaluation: LossResult | None = None
    is_best: bool = False

    @property
    def train_loss(self) -> float:
        """Return the mean loss per supervised token."""
        return self.loss_sum / max(self.num_supervised_tokens, 1)

    def add(self, result: StepResult) -> None:
        """Count a step in."""
        self.loss_sum += result.train_loss * result.num_supervised_tokens
        self.num_tokens += result.num_tokens
        self.num_supervised_tokens += result.num_supervised_tokens
        self.grad_norm = result.grad_norm


class Actions(Protocol):
    """What the loop asks its caller to do."""

    def take_step(self, step: int, row_indices: Sequence[int]) -> StepResult:
        """Take one optimizer step over these rows."""

    def evaluate(self) -> LossResult:
        """Return the loss on the evaluation rows."""

    def save(self, state: LoopState) -> None:
        """Save a checkpoint."""

    def record(self, record: StepRecord, state: LoopState) -> None:
        """Write down what happened since the last record."""


def run_loop(plan: LoopPlan, actions: Actions) -> LoopState:
    """Run the plan to its end, or to where its metric stops getting better."""
    state = LoopState()
    if plan.evaluates_first:
        actions.record(StepRecord(0, 0.0, evaluation=actions.evaluate()), state)
    pending = StepRecord(0, 0.0)
    for step in range(1, plan.num_steps + 1):
        pending.add(actions.take_step(step, plan.rows_of_step(step)))
        state.step = pending.step = step
        pending.epoch = step / plan.steps_per_epoch
        is_last = step == plan.num_steps
        ends_epoch = step % plan.steps_per_epoch == 0 or is_last
        if plan.evaluate_every and (plan.evaluate_every.is_due(step, ends_epoch=ends_epoch) or is_last):
            pending.evaluation = actions.evaluate()
            _judge(plan, state, pending)
        state.stopped_early = _should_stop(plan, state, pending)
        is_save_due = plan.save_every is not None and plan.save_every.is_due(step, ends_epoch=ends_epoch)
        if is_save_due or (pending.is_best and plan.saves_best):
            actions.save(state)
        if step % plan.log_every_steps == 0 or pending.evaluation or is_last:
            actions.record(pending, state)
            pending = StepRecord(step, pending.epoch)
        if state.stopped_early:
            break
    return state


@lru_cache(maxsize=2)  # every step of an epoch asks for it
def order_of_epoch(num_rows: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """Return the order of the rows in an epoch, counted from 0: a shuffle that seed and epoch decide."""
    order = np.random.default_rng([seed, epoch]).permutation(num_rows)
    order.flags.writeable = False  # others get the same array
    return order


def _judge(plan: LoopPlan, state: LoopState, record: StepRecord) -> None:
    assert record.evaluation is not None
    metrics = {
        "eval_loss": record.evaluation.loss,
        "eval_perplexity": record.evaluation.perplexity,
        "train_loss": record.train_loss,
    }
    if metrics[plan.metric] < state.best_metric - plan.threshold:
        state.best_metric, state.best_step = metrics[plan.metric], state.step
        state.num_evaluations_without_better = 0
        record.is_best = True
    else:
        state.num_evaluations_without_better += 1


def _should_stop(plan: LoopPlan, state: LoopState, record: StepRecord) -> bool:
    return (
        plan.patience is not None
        and record.evaluation is not None
        and record.epoch >= plan.min_epochs
        and state.num_evaluations_without_better >= plan.patience
    )
