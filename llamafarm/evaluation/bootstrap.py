"""How sure a difference is: bootstrap intervals over rows, drawn in pairs. Axes: N, rows; B, draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.95
_NUM_DRAWS = 4000
# Below this an interval says more of its own assumptions than of the rows.
FEWEST_ROWS = 8


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the interval that has the true value 19 times of 20. None, where rows are too few."""

    estimate: float
    low: float | None
    high: float | None

    @property
    def is_above_zero(self) -> bool:
        """Return whether all of it is above 0."""
        return self.low is not None and self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Return whether all of it is below 0."""
        return self.high is not None and self.high < 0


def mean_interval(values_N: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """Return the mean of values with its interval."""
    return ratio_interval(values_N, np.ones(len(values_N)), seed=seed)


def ratio_interval(sums_N: NDArray[np.float64], counts_N: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """Return the sum of `sums_N` by that of `counts_N`, rows drawn anew 4,000 times.

    For a paired difference `sums_N` are the differences of each row. The percentiles are those of BCa (Efron
    1987, https://doi.org/10.1080/01621459.1987.10478410), which sees skewed rows, widened for few rows
    (Hesterberg 2015, https://arxiv.org/abs/1411.5279, section 5.3).
    """
    num_rows = len(sums_N)
    if not num_rows or not counts_N.sum():
        return Interval(0.0, None, None)
    estimate = float(sums_N.sum() / counts_N.sum())
    if num_rows < FEWEST_ROWS:
        return Interval(estimate, None, None)
    influence_N = sums_N - estimate * counts_N
    if not np.abs(influence_N).max() > 1e-12 * max(1.0, abs(estimate)):
        return Interval(estimate, estimate, estimate)
    estimates_B = _draw_estimates(sums_N, counts_N, seed)
    low, high = np.quantile(estimates_B, _tails(estimates_B, estimate, influence_N))
    return Interval(estimate, float(low), float(high))


def _draw_estimates(
    sums_N: NDArray[np.float64], counts_N: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """Return the estimates of rows drawn anew, with repeats."""
    num_rows, draw = len(sums_N), np.random.default_rng(seed)
    estimates_B = np.empty(_NUM_DRAWS)
    # In parts, so that many rows do not need their number times 4,000 at once.
    at_once = max(1, 2**22 // num_rows)
    for start in range(0, _NUM_DRAWS, at_once):
        places_BN = draw.integers(0, num_rows, (min(at_once, _NUM_DRAWS - start), num_rows))
        totals_B = np.maximum(counts_N[places_BN].sum(1), 1e-12)
        estimates_B[start : start + len(places_BN)] = sums_N[places_BN].sum(1) / totals_B
    return estimates_B


def _tails(
    estimates_B: NDArray[np.float64], estimate: float, influence_N: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the parts of the drawn estimates that lie below either end of the interval."""
    num_rows, normal = len(influence_N), NormalDist()
    width = math.sqrt(num_rows / (num_rows - 1)) * student_quantile((1 + LEVEL) / 2, num_rows - 1)
    acceleration = float((influence_N**3).sum() / (6 * (influence_N**2).sum() ** 1.5))
    below = float(((estimates_B < estimate).mean() + (estimates_B <= estimate).mean()) / 2)
    bias = normal.inv_cdf(min(max(below, 1e-4), 1 - 1e-4))

    def tail(quantile: float) -> float:
        shifted = bias + quantile
        return normal.cdf(bias + shifted / max(1 - acceleration * shifted, 1e-3))

    return tail(-width), tail(width)


def student_quantile(chance: float, degrees: int) -> float:
    """Return a quantile of Student's t, within 2e-3 from 4 degrees on.

    The expansion of Cornish and Fisher: Abramowitz and Stegun 1964, 26.7.5.
    """
    z = NormalDist().inv_cdf(chance)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / degrees**power for power, term in enumerate(terms))
