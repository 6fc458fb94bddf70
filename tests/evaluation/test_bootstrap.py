"""Intervals have the true value as often as they say, and claim nothing of too few rows. Axes: N, rows."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llamafarm.evaluation import bootstrap
from llamafarm.evaluation.bootstrap import (
    FEWEST_ROWS,
    LEVEL,
    Interval,
    mean_interval,
    ratio_interval,
    student_quantile,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rows = tuple["NDArray[np.float64]", "NDArray[np.float64]"]

NUM_TRIALS = 1500


def draw_normal(draw: np.random.Generator, num_rows: int) -> Rows:
    return draw.normal(0.3, 1.0, num_rows), np.ones(num_rows)


def draw_exponential(draw: np.random.Generator, num_rows: int) -> Rows:
    return draw.exponential(0.3, num_rows), np.ones(num_rows)


def draw_trinary(draw: np.random.Generator, num_rows: int) -> Rows:
    """Answers that became right, stayed as they were or became wrong."""
    return draw.choice([-1.0, 0.0, 1.0], num_rows, p=[0.1, 0.5, 0.4]), np.ones(num_rows)


def draw_ratio(draw: np.random.Generator, num_rows: int) -> Rows:
    """Summed losses of rows, which have from 5 to 59 tokens."""
    counts_N = draw.integers(5, 60, num_rows).astype(float)
    return counts_N * draw.gamma(4.0, 0.3 / 4, num_rows), counts_N


@pytest.mark.parametrize("num_rows", [20, 100])
@pytest.mark.parametrize("draw_rows", [draw_normal, draw_exponential, draw_trinary, draw_ratio])
def test_the_interval_has_the_true_value_nineteen_times_of_twenty(
    draw_rows: Callable[[np.random.Generator, int], Rows], num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "_NUM_DRAWS", 1000)
    draw = np.random.default_rng(1)
    found = [ratio_interval(*draw_rows(draw, num_rows), seed=trial) for trial in range(NUM_TRIALS)]
    lows, highs = np.array([(one.low, one.high) for one in found], float).T
    assert np.mean((lows <= 0.3) & (highs >= 0.3)) == pytest.approx(LEVEL, abs=0.025)
    assert all(one.low < one.estimate < one.high for one in found if one.low != one.high)  # type: ignore[operator]


def test_an_interval_of_normal_rows_is_that_of_students_t() -> None:
    values_N = np.random.default_rng(0).normal(size=100)
    half = 1.984217 * values_N.std(ddof=1) / 10
    found = mean_interval(values_N)
    assert found.estimate == pytest.approx(values_N.mean())
    assert found.low == pytest.approx(values_N.mean() - half, abs=half / 10)
    assert found.high == pytest.approx(values_N.mean() + half, abs=half / 10)


def test_a_skewed_interval_reaches_farther_to_the_side_of_the_tail() -> None:
    found = mean_interval(np.random.default_rng(0).exponential(size=30))
    assert found.low is not None and found.high is not None
    assert found.high - found.estimate > 1.15 * (found.estimate - found.low)


def test_rows_with_more_tokens_weigh_more() -> None:
    found = ratio_interval(np.array([10.0, 200, 10, 200, 10, 200]), np.array([10.0, 100, 10, 100, 10, 100]))
    assert found.estimate == 630 / 330


def test_a_mean_is_a_ratio_with_counts_of_one() -> None:
    values_N = np.random.default_rng(3).normal(size=17)
    assert mean_interval(values_N, seed=5) == ratio_interval(values_N, np.ones(17), seed=5)


@pytest.mark.parametrize(
    ("chance", "degrees", "quantile"),
    [
        (0.975, 4, 2.776445),
        (0.975, 5, 2.570582),
        (0.975, 9, 2.262157),
        (0.975, 19, 2.093024),
        (0.975, 30, 2.042272),
        (0.975, 99, 1.984217),
        (0.975, 1000, 1.962339),
        (0.95, 5, 2.015048),
        (0.995, 10, 3.169273),
        (0.5, 7, 0.0),
        (0.025, 9, -2.262157),
    ],
)
def test_quantiles_of_students_t_are_those_of_the_tables(
    chance: float, degrees: int, quantile: float
) -> None:
    assert student_quantile(chance, degrees) == pytest.approx(quantile, abs=2e-3 if degrees < 9 else 1e-4)


@pytest.mark.parametrize("num_rows", range(1, FEWEST_ROWS))
def test_too_few_rows_have_an_estimate_and_no_interval(num_rows: int) -> None:
    found = mean_interval(np.arange(num_rows) + 1.0)
    assert found == Interval((num_rows + 1) / 2, None, None)
    assert not found.is_above_zero and not found.is_below_zero
    assert mean_interval(np.arange(FEWEST_ROWS) + 1.0).low is not None


def test_no_rows_and_rows_without_tokens_have_no_interval() -> None:
    assert mean_interval(np.array([])) == Interval(0.0, None, None)
    assert ratio_interval(np.zeros(9), np.zeros(9)) == Interval(0.0, None, None)


@pytest.mark.parametrize("value", [0.0, 0.1, -2.5, 1e9])
def test_rows_that_are_all_equal_have_an_interval_without_width(value: float) -> None:
    for num_rows in (FEWEST_ROWS, 30):
        found = mean_interval(np.full(num_rows, value))
        assert found.estimate == pytest.approx(value)
        assert found.low == found.high == found.estimate
    assert found.is_above_zero == (value > 0) and found.is_below_zero == (value < 0)


def test_rows_of_one_loss_per_token_have_an_interval_without_width() -> None:
    counts_N = np.random.default_rng(0).integers(1, 5000, 40).astype(float)
    found = ratio_interval(counts_N * 0.7, counts_N)
    assert (found.low, found.high) == (pytest.approx(0.7), pytest.approx(0.7))


def test_what_is_above_or_below_zero_is_all_of_the_interval() -> None:
    values_N = np.random.default_rng(0).normal(size=50)
    above, around, below = (mean_interval(values_N + shift) for shift in (2, 0, -2))
    assert [one.is_above_zero for one in (above, around, below)] == [True, False, False]
    assert [one.is_below_zero for one in (above, around, below)] == [False, False, True]


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly() -> None:
    values_N = np.random.default_rng(0).normal(size=50)
    first, again, other = (mean_interval(values_N, seed=seed) for seed in (7, 7, 8))
    assert first == again != other
    assert first.low == pytest.approx(other.low, abs=0.03)
    assert first.high == pytest.approx(other.high, abs=0.03)


def test_one_row_that_differs_of_many_is_not_sure() -> None:
    found = mean_interval(np.array([1.0] + [0.0] * 49))
    assert found.low is not None and found.high is not None
    assert found.low <= 0.02 < found.high < 0.2
    assert not found.is_above_zero


def test_many_rows_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_NUM_DRAWS", 120)
    values_N = np.random.default_rng(0).normal(size=300_000)
    tracemalloc.start()
    found = mean_interval(values_N)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.low is not None and found.high is not None
    assert found.low < 0 < found.high < 0.01
    assert peak_bytes < 120 * 300_000 * 8 / 2, "at once, the places alone take twice that"


def test_more_rows_than_are_drawn_at_once_are_drawn_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_NUM_DRAWS", 3)
    values_N = np.zeros(2**22 + 1)
    values_N[::2] = 1.0
    found = mean_interval(values_N)
    assert found.low == pytest.approx(0.5, abs=0.01) and found.high == pytest.approx(0.5, abs=0.01)
