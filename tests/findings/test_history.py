"""A run's figures as arrays: what is no number, which losses stand beside an evaluation, medians."""

from __future__ import annotations

import math

import numpy as np
import pytest
from loss_curves import Curve, Line, falls, make_lines

from llamafarm.findings.history import History, running_median

LOSS = falls(2.0, 1.2)


def line(
    step: int, loss: float | None = 1.0, *, epoch: float = 0.5, tokens: int = 10, **others: float
) -> Line:
    return {
        "step": step,
        "epoch": epoch,
        "train_loss": loss,
        "eval_loss": None,
        "learning_rate": 1e-4,
        "grad_norm": 1.0,
        "supervised_tokens": tokens,
        **others,
    }


def test_the_line_of_step_0_is_an_evaluation_and_no_step() -> None:
    lines = make_lines(Curve(LOSS, LOSS, num_steps=40, num_evaluations=4, noise=0.0))
    history = History(lines)
    assert len(history) == 40
    assert history.steps_N[0] == 1
    assert history.eval_steps_E.tolist() == [0, 10, 20, 30, 40]
    assert history.eval_losses_E[0] == 2.0


def test_a_history_without_lines_is_empty() -> None:
    history = History([])
    assert len(history) == 0 and len(history.eval_steps_E) == 0
    assert history.smoothed_losses.tolist() == []
    assert history.train_loss_until(10) == math.inf


@pytest.mark.parametrize("value", [None, math.inf, math.nan, 1e308])
def test_a_loss_that_is_no_number_is_above_all_others(value: float | None) -> None:
    history = History([line(1), line(2, value), line(3)])
    assert np.isfinite(history.train_losses_N).all()
    assert int(np.argmax(history.train_losses_N)) == 1
    assert history.train_losses_N[1] > 1000


def test_an_evaluation_that_is_null_is_none() -> None:
    assert len(History([line(1), line(2)]).eval_losses_E) == 0


def test_the_training_loss_beside_an_evaluation_is_of_the_last_half_epoch_by_tokens() -> None:
    lines = [line(step, 3.0, epoch=step / 20) for step in range(1, 11)]
    lines += [line(step, 1.0, epoch=step / 20, tokens=30) for step in range(11, 16)]
    lines += [line(step, 2.0, epoch=step / 20, tokens=10) for step in range(16, 21)]
    assert History(lines).train_loss_until(20) == pytest.approx((30 * 1.0 + 10 * 2.0) / 40)


def test_a_short_epoch_takes_its_last_steps_all_the_same() -> None:
    lines = [line(step, float(step), epoch=step / 2) for step in range(1, 9)]
    assert History(lines).train_loss_until(8) == pytest.approx(6.0)
    assert History(lines).train_loss_until(1) == 1.0


def test_tokens_that_are_not_known_do_not_count() -> None:
    lines = [line(step) | {"supervised_tokens": None} for step in range(1, 9)]
    assert History(lines).train_loss_until(8) == pytest.approx(1.0)


def test_the_loss_at_the_start_is_that_before_anything_was_learnt() -> None:
    falling = [line(step, 3.0 - step / 50) for step in range(1, 101)]
    assert History(falling).start_loss == pytest.approx(2.98)
    odd = [line(1, 2.2), *(line(step, 3.0) for step in range(2, 101))]
    assert History(odd).start_loss == 3.0
    rising = [line(1, 1.5), *(line(step, 8.0) for step in range(2, 101))]
    assert History(rising).start_loss == 1.5


def test_a_running_median_is_of_each_value_and_those_before_it() -> None:
    values_N = np.array([5.0, 1.0, 2.0, 9.0, 3.0])
    assert running_median(values_N, 3).tolist() == [5.0, 5.0, 2.0, 2.0, 3.0]
    assert running_median(values_N[:1], 3).tolist() == [5.0]
    assert running_median(np.array([]), 3).tolist() == []


def test_one_step_moves_the_smoothed_loss_little() -> None:
    lines = [line(step, 50.0 if step == 60 else 1.0) for step in range(1, 121)]
    assert History(lines).smoothed_losses.max() == 1.0
