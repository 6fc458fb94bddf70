"""The loop over actions that only remember: which rows, when to evaluate, save, record and stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest

from llamafarm.evaluation.loss import LossResult
from llamafarm.training.loop import Every, LoopPlan, LoopState, StepRecord, order_of_epoch, run_loop
from llamafarm.training.step import StepResult


class Memory:
    """Actions that remember what they were asked; evaluations give the losses handed in, then the last."""

    def __init__(self, eval_losses: Sequence[float] = (1.0,), train_losses: Sequence[float] = (2.0,)) -> None:
        self.eval_losses = eval_losses
        self.train_losses = train_losses
        self.rows: list[list[int]] = []
        self.evaluated: list[int] = []
        self.saved: list[int] = []
        self.records: list[StepRecord] = []

    def take_step(self, step: int, row_indices: Sequence[int]) -> StepResult:
        assert step == len(self.rows) + 1
        self.rows.append(list(row_indices))
        loss = self.train_losses[min(step, len(self.train_losses)) - 1]
        # Later steps have more tokens, so that a plain mean of losses would be wrong.
        return StepResult(loss, grad_norm=float(step), num_tokens=10 * step, num_supervised_tokens=step)

    def evaluate(self) -> LossResult:
        self.evaluated.append(len(self.rows))
        return LossResult(self.eval_losses[min(len(self.evaluated), len(self.eval_losses)) - 1], 5)

    def save(self, state: LoopState) -> None:
        assert state.step == len(self.rows)
        self.saved.append(state.step)

    def check_stop(self) -> None:
        pass

    def record(self, record: StepRecord, state: LoopState) -> None:
        assert record.step == state.step
        self.records.append(record)


def plan(**options: Any) -> LoopPlan:
    given: dict[str, Any] = {"num_rows": 8, "rows_per_step": 2, "num_epochs": 2, "shuffle": False, "seed": 0}
    return LoopPlan(**(given | options))


def loop(memory: Memory, **options: Any) -> LoopState:
    return run_loop(plan(**options), memory)


def test_unshuffled_steps_see_the_rows_in_order_and_the_last_of_an_epoch_what_is_left() -> None:
    memory = Memory()
    loop(memory, num_rows=5)
    assert memory.rows == [[0, 1], [2, 3], [4], [0, 1], [2, 3], [4]]


def test_each_shuffled_epoch_sees_every_row_once_in_an_order_of_its_own() -> None:
    memory = Memory()
    loop(memory, num_rows=40, rows_per_step=8, shuffle=True)
    epochs = [list(chain(*steps)) for steps in (memory.rows[:5], memory.rows[5:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(40))] * 2
    assert epochs[0] != epochs[1]
    assert list(range(40)) not in epochs


def test_the_order_follows_from_seed_and_epoch() -> None:
    orders = {tuple(order_of_epoch(40, epoch, seed)) for epoch in (0, 1) for seed in (0, 1)}
    order_of_epoch.cache_clear()
    assert orders == {tuple(order_of_epoch(40, epoch, seed)) for epoch in (0, 1) for seed in (0, 1)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(40)) for order in orders)


@pytest.mark.parametrize(
    ("num_epochs", "num_steps"), [(1, 10), (1.5, 15), (0.25, 3), (0.001, 1), (1.1, 11), (0.3, 3)]
)
def test_a_fraction_of_an_epoch_is_rounded_up_to_whole_steps(num_epochs: float, num_steps: int) -> None:
    memory = Memory()
    loop(memory, num_rows=20, num_epochs=num_epochs)
    assert len(memory.rows) == num_steps


def test_max_steps_ends_a_run_but_does_not_lengthen_it() -> None:
    assert plan(max_steps=3).num_steps == 3
    assert plan(max_steps=100).num_steps == 8
    memory = Memory()
    assert loop(memory, max_steps=3).step == 3
    assert len(memory.rows) == 3


def test_evaluation_by_steps_comes_round_and_once_more_at_the_end() -> None:
    memory = Memory()
    loop(memory, evaluate_every=Every(3))
    assert memory.evaluated == [3, 6, 8]


def test_evaluation_by_epoch_comes_after_each_and_after_a_broken_one() -> None:
    memory = Memory()
    loop(memory, num_epochs=2.5, evaluate_every=Every(None))
    assert memory.evaluated == [4, 8, 10]


def test_without_a_rhythm_nothing_is_evaluated_or_saved() -> None:
    memory = Memory()
    state = loop(memory)
    assert (memory.evaluated, memory.saved, state.best_step) == ([], [], 0)


def test_saving_has_a_rhythm_of_its_own() -> None:
    memory = Memory()
    loop(memory, evaluate_every=Every(4), save_every=Every(3))
    assert memory.saved == [3, 6]
    memory = Memory()
    loop(memory, num_epochs=1.5, save_every=Every(None))
    assert memory.saved == [4, 6]


def test_each_new_best_is_saved_besides_the_rhythm() -> None:
    memory = Memory(eval_losses=[3.0, 2.0, 2.5, 1.0])
    state = loop(memory, evaluate_every=Every(2), save_every=Every(6), saves_best=True)
    assert memory.saved == [2, 4, 6, 8]
    assert (state.best_step, state.best_metric) == (8, 1.0)
    assert [record.is_best for record in memory.records if record.evaluation] == [True, True, False, True]


def test_without_saves_best_a_new_best_is_only_remembered() -> None:
    memory = Memory(eval_losses=[3.0, 1.0, 2.0, 2.0])
    state = loop(memory, evaluate_every=Every(2), save_every=Every(6))
    assert memory.saved == [6]
    assert (state.best_step, state.best_metric) == (4, 1.0)


@pytest.mark.parametrize(
    ("metric", "best_step"), [("eval_loss", 4), ("eval_perplexity", 4), ("train_loss", 6)]
)
def test_the_metric_says_which_is_best(metric: str, best_step: int) -> None:
    memory = Memory(eval_losses=[3.0, 1.0, 2.0, 2.0], train_losses=[4.0, 4.0, 4.0, 4.0, 1.0, 1.0, 2.0])
    assert loop(memory, evaluate_every=Every(2), metric=metric).best_step == best_step


def test_a_loss_that_is_not_a_number_is_never_best() -> None:
    memory = Memory(eval_losses=[math.nan, 5.0, math.nan, 6.0])
    assert loop(memory, evaluate_every=Every(2)).best_step == 4


def test_patience_ends_a_run_after_so_many_evaluations_without_better() -> None:
    memory = Memory(eval_losses=[3.0, 2.0, 2.5, 2.0, 1.0])
    state = loop(memory, num_epochs=5, evaluate_every=Every(2), patience=2)
    assert (state.step, state.stopped_early, state.best_step) == (8, True, 4)
    assert memory.evaluated == [2, 4, 6, 8]
    assert memory.records[-1].step == 8


def test_a_better_evaluation_renews_the_patience() -> None:
    memory = Memory(eval_losses=[3.0, 3.5, 2.0, 2.5])
    state = loop(memory, evaluate_every=Every(2), patience=2)
    assert (state.step, state.stopped_early) == (8, False)


def test_better_by_less_than_the_threshold_does_not_count() -> None:
    falling = [3.0, 2.9, 2.8, 2.7]
    assert not loop(Memory(falling), evaluate_every=Every(2), patience=2).stopped_early
    state = loop(Memory(falling), evaluate_every=Every(2), patience=2, threshold=0.25)
    assert (state.step, state.best_step) == (6, 2)


def test_a_run_does_not_end_before_its_least_epochs() -> None:
    memory = Memory(eval_losses=[1.0, 2.0])
    state = loop(memory, num_epochs=6, min_epochs=3, evaluate_every=Every(None), patience=1)
    assert (state.step, state.stopped_early) == (12, True)


def test_each_record_holds_the_mean_over_the_tokens_since_the_last() -> None:
    memory = Memory(train_losses=[1.0, 4.0, 2.0, 2.0, 5.0])
    loop(memory, max_steps=5, log_every_steps=2)
    assert [record.step for record in memory.records] == [2, 4, 5]
    assert memory.records[0].train_loss == pytest.approx((1 * 1.0 + 2 * 4.0) / 3)
    assert [record.train_loss for record in memory.records[1:]] == [2.0, 5.0]
    assert [record.num_tokens for record in memory.records] == [30, 70, 50]
    assert [record.num_supervised_tokens for record in memory.records] == [3, 7, 5]
    assert [record.grad_norm for record in memory.records] == [2.0, 4.0, 5.0]
    assert [record.epoch for record in memory.records] == [0.5, 1.0, 1.25]


def test_an_evaluation_is_recorded_at_its_own_step() -> None:
    memory = Memory(eval_losses=[3.0, 2.0])
    loop(memory, max_steps=6, log_every_steps=4, evaluate_every=Every(3))
    assert [(record.step, record.evaluation is not None) for record in memory.records] == [
        (3, True),
        (4, False),
        (6, True),
    ]
