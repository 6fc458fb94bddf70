"""Whether the training loss does what a fitting learning rate makes it do.

Too high: it rises above where it began. Diverged: it had fallen, rose again and stayed there. Spikes and
unstable gradients: single steps that stand out. Too low: it falls slowly and steadily, without ever bending.
Plateau: it fell and then no longer did, while the learning rate was still high. The most specific is named.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from llamafarm.findings.finding import Finding
from llamafarm.findings.history import History, Settings, running_median

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Lines before which nothing is said of a curve.
_FEWEST_LINES = 12
_FEWEST_FOR_SLOWNESS = 24
# More steps than these, one after the other, that stand out are no spike but a rise.
_LONGEST_SPIKE = 3
# A loss that moved by less of itself stands still; that of training is of other rows at each step.
_STILL, _STILL_IN_TRAINING = 0.01, 0.03
# One that fell by more has learnt, whether or not there is more to learn.
_MOST_UNBENT_FALL = 0.4
# The stretches at either end of the way that are compared, and how much less the last may teach.
_PART_OF_WAY, _BENT = 0.25, 0.5
_LEAST_LAST_PART = 0.2
# In standard errors: what a slope must be beyond its limit by.
_SURE = 2.0
# A rate above which ten times as much is more than most models bear.
_HIGH_RATE = 5e-3
# A loss below this leaves little to learn, so that standing still there is no fault.
_LEARNT_LOSS = 0.3


def find_learning(history: History, settings: Settings, *, trusts_evaluations: bool = True) -> list[Finding]:
    """Return what the losses and the gradients say: of each kind one finding at most.

    Without `trusts_evaluations`, as where they are on rows of another kind, by the training loss alone.
    """
    if len(history) < _FEWEST_LINES:
        return []
    blown_up = _find_too_high(history, settings) or _find_divergence(history, settings)
    if blown_up is not None:
        return [blown_up]
    has_baseline = trusts_evaluations and _has_baseline(history)
    unstable = _find_spikes(history) or _find_unstable_gradients(history, settings)
    slow = _find_too_low(history, settings, has_baseline) or _find_plateau(history, settings)
    return [found for found in (unstable, slow) if found is not None]


def _find_too_high(history: History, settings: Settings) -> Finding | None:
    smoothed_N, start = history.smoothed_losses, history.start_loss
    worst = int(np.argmax(smoothed_N))
    # Above the start by more than the noise of single steps.
    limit = start + max(0.3, 0.1 * start, 3 * _noise(history))
    is_above_N = smoothed_N > limit
    if is_above_N.sum() < max(5, len(history) // 20):
        return None
    return Finding(
        "learning-rate-too-high",
        "warning",
        f"train_loss began at {start:.3f} and rose to {smoothed_N[worst]:.3f} at step "
        f"{history.steps_N[worst]}, with a learning rate of {history.learning_rates_N[worst]:.1e}",
        "Steps this large undo what the model knows instead of teaching it",
        f"training_args.learning_rate: {settings.learning_rate / 10:.0e}, then warmup_ratio: 0.1",
        int(history.steps_N[int(np.argmax(is_above_N))]),
    )


def _find_divergence(history: History, settings: Settings) -> Finding | None:
    smoothed_N = history.smoothed_losses
    best = int(np.argmin(smoothed_N))
    last_N = smoothed_N[-max(3, len(history) // 10) :]
    rise = float(np.min(last_N)) - float(smoothed_N[best])
    if rise < max(0.3, 0.3 * smoothed_N[best], 4 * _noise(history)) or best >= len(history) - len(last_N):
        return None
    return Finding(
        "divergence",
        "warning",
        f"train_loss had fallen to {smoothed_N[best]:.3f} at step {history.steps_N[best]} and is "
        f"{last_N[-1]:.3f} at step {history.steps_N[-1]}",
        "The training lost what it had gained and did not find back",
        f"training_args.learning_rate: {settings.learning_rate / 3:.0e}, max_grad_norm: "
        f"{min(settings.max_grad_norm or 1.0, 1.0) / 2:g}, or load_best_model_at_end: true",
        int(history.steps_N[-1]),
    )


def _find_spikes(history: History) -> Finding | None:
    losses_N = history.train_losses_N
    around_N = running_median(losses_N, min(21, len(history)))
    noise = _noise(history)
    is_spike_N = losses_N > np.maximum(around_N + np.maximum(10 * noise, 0.5), 2 * around_N)
    is_spike_N[: min(5, len(history))] = False
    _drop_long_stretches(is_spike_N)
    num_spikes = int(is_spike_N.sum())
    if not num_spikes:
        return None
    worst = int(np.argmax(np.where(is_spike_N, losses_N, -np.inf)))
    return Finding(
        "loss-spikes",
        "warning" if num_spikes >= max(3, len(history) // 50) else "note",
        f"{num_spikes} steps stand out, the worst is step {history.steps_N[worst]} with a loss of "
        f"{losses_N[worst]:.2f} among {around_N[worst]:.2f}",
        "Odd rows, or steps at the edge of what is stable",
        "look at the rows of that step (monitoring.log_level: debug names them); a larger batch "
        "(gradient_accumulation_steps) or a lower learning_rate makes steps steadier",
        int(history.steps_N[worst]),
    )


def _drop_long_stretches(is_out_N: NDArray[np.bool_]) -> None:
    """Take out, in place, stretches that no single steps make, and one at the end that may become longer."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_out_N, [False]])))
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        if end - first > _LONGEST_SPIKE or end == len(is_out_N):
            is_out_N[first:end] = False


def _find_unstable_gradients(history: History, settings: Settings) -> Finding | None:
    # An infinite one is of a step that fp16 skipped to find its scale, and decides nothing.
    is_taken_N = np.isfinite(history.grad_norms_N)
    norms_N = history.grad_norms_N[is_taken_N]
    if len(norms_N) < _FEWEST_LINES:
        return None
    around_N = running_median(norms_N, min(21, len(norms_N)))
    is_odd_N = norms_N > np.maximum(10 * around_N, settings.max_grad_norm)
    part = float(is_odd_N.mean())
    if part < 0.05:
        return None
    return Finding(
        "unstable-gradients",
        "warning",
        f"in {part:.0%} of the steps the gradient's norm was more than ten times that of the steps around, "
        f"up to {norms_N.max():.3g}",
        "Single steps decide where the training goes; what they are clipped to is all that holds it",
        f"training_args.warmup_ratio: 0.1, learning_rate: {settings.learning_rate / 3:.0e}, and a larger "
        "gradient_accumulation_steps",
        int(history.steps_N[is_taken_N][int(np.argmax(norms_N))]),
    )


def _find_too_low(history: History, settings: Settings, has_baseline: bool) -> Finding | None:
    if len(history) < _FEWEST_FOR_SLOWNESS or history.steps_N[-1] < settings.num_steps / 2:
        return None
    start, fall = _fall_of(history, has_baseline)
    if start - fall < _LEARNT_LOSS or fall > _MOST_UNBENT_FALL * start:
        return None
    stands_still = _stands_still(history, has_baseline)
    if not stands_still and not _falls_without_bending(history, has_baseline):
        return None
    rate = settings.learning_rate
    how = "hardly falls" if stands_still else "falls as fast at the end as in the beginning"
    return Finding(
        "learning-rate-too-low",
        "warning",
        f"the loss went from {start:.3f} to {start - fall:.3f} in {history.steps_N[-1]} steps, at learning "
        f"rates up to {history.learning_rates_N.max():.1e}",
        f"The steps are too small to learn what there is to learn: for its rate, the loss {how}",
        f"training_args.learning_rate: {max(min(10 * rate, _HIGH_RATE), 2 * rate):.0e}",
    )


def _stands_still(history: History, has_baseline: bool) -> bool:
    """Return whether the loss surely never moved: it may also do so within the first steps."""
    start, fall, error = _fall_in_training(history)
    if not has_baseline:
        fell_at_once = float(history.train_losses_N[:5].mean()) - start > 0.6 * _noise(history)
        return not fell_at_once and abs(fall) + _SURE * error < _STILL_IN_TRAINING * start
    losses_E = history.eval_losses_E
    is_still_E = np.abs(losses_E - losses_E[0]) < _STILL * losses_E[0]
    return bool(is_still_E.all()) and fall - _SURE * error < _STILL_IN_TRAINING * start


def _falls_without_bending(history: History, has_baseline: bool) -> bool:
    """Return whether the end of the way taught as much as its beginning.

    The way is the learning rate summed up: so far a weight can have moved. A loss that bends early has learnt
    the easy part, at whatever rate; one that does not bend is at the very beginning of what it can learn.
    """
    gone_N = np.cumsum(history.learning_rates_N)
    if not gone_N[-1] > 0:
        return False
    way_N = gone_N / gone_N[-1]
    if not has_baseline:
        return _slopes_are_alike(way_N, history)
    losses_E = history.eval_losses_E
    way_E = np.interp(history.eval_steps_E, np.append(0, history.steps_N), np.append(0.0, way_N))
    # Where evaluations are rare, the stretches at the ends are as long as they are.
    first = int(np.searchsorted(way_E, _PART_OF_WAY))
    last = int(np.searchsorted(way_E, 1 - _LEAST_LAST_PART, side="right")) - 1
    if first > last:
        return False
    in_first = (losses_E[0] - losses_E[first]) / way_E[first]
    in_last = (losses_E[last] - losses_E[-1]) / (1 - way_E[last])
    return bool(in_first > 0 and in_last > _BENT * in_first)


def _slopes_are_alike(way_N: NDArray[np.float64], history: History) -> bool:
    """Return whether the loss surely falls in the second half of the way by as much as had it not bent.

    Within epochs: from one to the next it falls by what was memorised as well.
    """
    epoch_of_N = np.ceil(history.epochs_N - 1e-6)
    is_first_N = way_N < 0.5
    (first, first_error), (second, second_error) = (
        _slope(way_N[is_in_N], history.train_losses_N[is_in_N], epoch_of_N[is_in_N])
        for is_in_N in (is_first_N, ~is_first_N)
    )
    error = math.hypot(second_error, _BENT * first_error)
    return first < 0 and second < -_SURE * second_error and second - _BENT * first < -_SURE * error


def _slope(
    way_N: NDArray[np.float64], losses_N: NDArray[np.float64], group_of_N: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the slope that lines through each group's losses share, by least squares, and its error."""
    groups, places_N, counts = np.unique(group_of_N, return_inverse=True, return_counts=True)
    num_free = len(way_N) - len(groups) - 1
    if num_free < 4:
        return 0.0, math.inf
    centred_N, residual_N = (
        values_N - (np.bincount(places_N, values_N) / counts)[places_N] for values_N in (way_N, losses_N)
    )
    spread = float((centred_N**2).sum())
    if spread < 1e-12:
        return 0.0, math.inf
    slope = float((centred_N * residual_N).sum() / spread)
    residual_N = residual_N - slope * centred_N
    return slope, math.sqrt(float((residual_N**2).sum()) / num_free / spread)


def _find_plateau(history: History, settings: Settings) -> Finding | None:
    # Near the end only: what a few stretches of a long way teach is lost in their noise.
    if len(history) < _FEWEST_FOR_SLOWNESS or history.steps_N[-1] < 0.9 * settings.num_steps:
        return None
    start, fall, _ = _fall_in_training(history)
    half = len(history) // 2
    earlier, later = history.train_losses_N[half : 3 * half // 2], history.train_losses_N[3 * half // 2 :]
    since = float(earlier.mean() - later.mean())
    error = math.sqrt(float(earlier.var(ddof=1)) / len(earlier) + float(later.var(ddof=1)) / len(later))
    if start - fall < _LEARNT_LOSS or fall < max(0.1, 0.05 * start) or since + _SURE * error > 0.1 * fall:
        return None
    # While the schedule has the rate still up: at its end every loss stands still.
    if history.learning_rates_N[3 * half // 2] < 0.3 * history.learning_rates_N.max():
        return None
    return Finding(
        "plateau",
        "note",
        f"train_loss fell from {start:.3f} to {earlier.mean():.3f} by step {history.steps_N[half]} and is "
        f"{later.mean():.3f} since",
        "More steps of this kind teach nothing more",
        f"training_args.max_steps: {history.steps_N[half]} saves the rest; to learn more, lr_scheduler_type: "
        "cosine, a higher method.r, or other rows",
        int(history.steps_N[half]),
    )


def _fall_of(history: History, has_baseline: bool) -> tuple[float, float]:
    """Return the loss at the start and how far it fell.

    By the evaluations where there is one of before: they are on the same rows each time.
    """
    if has_baseline:
        before, after = float(history.eval_losses_E[0]), float(history.eval_losses_E[-1])
        return before, before - after
    start, fall, _ = _fall_in_training(history)
    return start, fall


def _fall_in_training(history: History) -> tuple[float, float, float]:
    """Return the training loss at the start, how far it fell, and that fall's standard error."""
    size = max(3, len(history) // 8)
    first, last = history.train_losses_N[:size], history.train_losses_N[-size:]
    error = math.sqrt(float(first.var(ddof=1) + last.var(ddof=1)) / size)
    return float(first.mean()), float(first.mean() - last.mean()), error


def _has_baseline(history: History) -> bool:
    return len(history.eval_steps_E) > 2 and history.eval_steps_E[0] == 0


def _noise(history: History) -> float:
    """Return how much the loss of a step differs from those around, as a standard deviation.

    A little more of a few lines, whose differences may be small by chance.
    """
    differences = np.diff(history.train_losses_N)
    if not len(differences):
        return 0.0
    # Without the largest fifth, which are jumps; that part of a normal distribution has this mean.
    sizes = np.sort(np.abs(differences - np.median(differences)))
    usual = float(sizes[: max(1, len(sizes) * 4 // 5)].mean())
    return usual / 0.5586 / math.sqrt(2) * (1 + 6 / len(differences))
