"""When to step, evaluate, save and stop. What each of them does is handed in.

A step is a set of rows: `rows_per_step` of them in the order of their epoch, the last step of an epoch with
what is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

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
        """Return the mean loss per supervised token; not a number where all steps were skipped."""
        return self.loss_sum / self.num_supervised_tokens if self.num_supervised_tokens else math.nan

    def add(self, result: StepResult) -> None:
        """Count a step in; the loss of one that was skipped is no number, and is left out."""
        if result.num_supervised_tokens:
            self.loss_sum += result.train_loss * result.num_supervised_tokens
        self.num_tokens += result.num_tokens
        self.num_supervised_tokens += result.num_supervised_tokens
        self.grad_norm = result.grad_norm


@dataclass(slots=True)
class LoopState:
    """How far a run is, and the best it has seen: all that the loop needs to go on from here.

    `pending` are the steps since the last record. Without `is_settled`, what follows a step (its evaluation,
    record and checkpoint) has yet to be done.
    """

    step: int = 0
    best_metric: float = math.inf
    best_step: int = 0
    num_evaluations_without_better: int = 0
    stopped_early: bool = False
    is_settled: bool = True
    pending: StepRecord = field(default_factory=lambda: StepRecord(0, 0.0))

    def as_record(self) -> dict[str, Any]:
        """Return the state as JSON has it: an infinite best is null."""
        assert self.pending.evaluation is None
        return {**asdict(self), "best_metric": self.best_metric if self.best_step else None}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> LoopState:
        """Return the state that `as_record` gave. Raises `TypeError` or `KeyError` if it is none."""
        for kind, given in ((cls, record), (StepRecord, record["pending"])):
            # What has a default must not come to it silently: without its best step a run chooses another.
            if missing := {one.name for one in fields(kind)} - set(given):
                raise KeyError(f"without {', '.join(sorted(missing))}")
        best_metric = math.inf if record["best_metric"] is None else record["best_metric"]
        return cls(**{**record, "best_metric": best_metric, "pending": StepRecord(**record["pending"])})


class Actions(Protocol):
    """What the loop asks its caller to do."""

    def take_step(self, step: int, row_indices: Sequence[int]) -> StepResult:
        """Take one optimizer step over these rows."""

    def evaluate(self) -> LossResult:
        """Return the loss on the evaluation rows."""

    def save(self, state: LoopState) -> None:
        """Save a checkpoint."""

    def check_stop(self) -> None:
        """Raise `StopAsked` if the run is to end here, to be continued from this state."""

    def record(self, record: StepRecord, state: LoopState) -> None:
        """Write down what happened since the last record."""


def run_loop(plan: LoopPlan, actions: Actions, state: LoopState | None = None) -> LoopState:
    """Run the plan to its end, or to where its metric stops getting better; from `state` on, if given.

    The state is true at every moment at which an action may raise: saved then, it is where the run goes on.
    """
    state = state or LoopState()
    if plan.evaluates_first and not state.step:
        actions.record(StepRecord(0, 0.0, evaluation=actions.evaluate()), state)
    if not state.is_settled:
        _settle(plan, actions, state)
    while state.step < plan.num_steps and not state.stopped_early:
        actions.check_stop()
        step = state.step + 1
        state.pending.add(actions.take_step(step, plan.rows_of_step(step)))
        state.step = state.pending.step = step
        state.pending.epoch = step / plan.steps_per_epoch
        state.is_settled = False
        actions.check_stop()
        _settle(plan, actions, state)
    return state


def _settle(plan: LoopPlan, actions: Actions, state: LoopState) -> None:
    """Do what follows a step: evaluate it, record it, save it, each where it is due."""
    step, pending = state.step, state.pending
    is_last = step == plan.num_steps
    ends_epoch = step % plan.steps_per_epoch == 0 or is_last
    if plan.evaluate_every and (plan.evaluate_every.is_due(step, ends_epoch=ends_epoch) or is_last):
        pending.evaluation = actions.evaluate()
        _judge(plan, state, pending)
    state.stopped_early = _should_stop(plan, state, pending)
    if step % plan.log_every_steps == 0 or pending.evaluation or is_last:
        actions.record(pending, state)
        state.pending = StepRecord(step, pending.epoch)
    state.is_settled = True
    is_save_due = plan.save_every is not None and plan.save_every.is_due(step, ends_epoch=ends_epoch)
    if is_save_due or (pending.is_best and plan.saves_best):
        actions.save(state)


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
