"""From figures to places on a plot: ranges, ticks and their labels, linear or logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

# A range that spans more than this is easier to read on a logarithmic scale.
_WIDE = 30.0
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """A range of figures and its ticks; `place` maps a figure into 0..1."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return where a figure lies, 0 at `low` and 1 at `high`."""
        if self.is_log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)

    def shows(self, value: float | None) -> bool:
        """Return whether a figure has a place."""
        return value is not None and math.isfinite(value) and (value > 0 or not self.is_log)


def spans_widely(values: Iterable[float | None]) -> bool:
    """Return whether positive figures lie so far apart that a logarithmic scale shows them better."""
    found = [value for value in values if value is not None]
    positive = [value for value in found if value > 0]
    return bool(positive) and len(positive) == len(found) and max(positive) > _WIDE * min(positive)


def make_scale(
    values: Iterable[float | None], *, is_log: bool = False, from_zero: bool = False, num_ticks: int = 5
) -> Scale:
    """Return a scale that holds all finite figures, with round ends."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    if is_log:
        positive = [value for value in found if value > 0]
        return _log_scale(min(positive), max(positive)) if positive else _linear(0.0, 1.0, num_ticks)
    if not found:
        return _linear(0.0, 1.0, num_ticks)
    low, high = min(found), max(found)
    if from_zero and low >= 0:
        low = 0.0
    if high - low < 1e-9 * max(1e-300, abs(high), abs(low)) or high == low:
        spread = abs(high) * 0.1 or 1.0
        low, high = (low if from_zero and low == 0 else low - spread), high + spread
    return _linear(low, high, num_ticks)


def step_scale(low: float, high: float, num_ticks: int = 6) -> Scale:
    """Return a scale of optimizer steps: ends where they end, ticks at whole numbers."""
    high = max(high, low + 1)
    step = max(1.0, _round_step((high - low) / num_ticks))
    step = math.ceil(step)
    first = math.ceil(low / step) * step
    num = int((high - first) / step + 1e-9) + 1
    return Scale(low, high, tuple(first + step * index for index in range(max(num, 0))))


def show_ticks(ticks: Sequence[float]) -> list[str]:
    """Return labels that tell the ticks apart and take little room."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    if largest and (largest < 1e-3 or largest >= 1e7):
        return [_in_powers(tick) for tick in ticks]
    gaps = [abs(after - before) for before, after in pairwise(ticks)]
    least = min((gap for gap in gaps if gap), default=largest or 1.0)
    decimals = max(0, -math.floor(math.log10(least) + 1e-9)) if least else 0
    if any(abs(round(tick, decimals) - tick) > 1e-6 * max(least, 1e-300) for tick in ticks):
        decimals += 1
    if any(tick < 0.1 * largest for tick in ticks if tick > 0) and gaps and max(gaps) > 5 * least:
        return [f"{tick:,.10g}" for tick in ticks]
    return [_unsigned_zero(f"{tick:,.{min(decimals, 6)}f}") for tick in ticks]


def _linear(low: float, high: float, num_ticks: int) -> Scale:
    # Halved, so that figures at either end of what a number holds do not overflow.
    step = _round_step(2 * (high / 2 - low / 2) / num_ticks) if high - low < math.inf else high / 2 - low / 2
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(index * step for index in range(int(first), int(last) + 1))
    return Scale(ticks[0], ticks[-1], ticks)


def _log_scale(low: float, high: float) -> Scale:
    bottom, top = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    top = max(top, bottom + 1)
    num_decades = top - bottom
    # Up to here ticks within a decade have room, and are needed.
    if math.log10(high) - math.log10(low) <= 2.3:
        all_ticks = [digit * 10.0**power for power in range(bottom, top + 1) for digit in (1, 2, 5)]
        inner = [tick for tick in all_ticks if tick <= 10.0**top * 1.001]
        start = max((tick for tick in inner if tick <= low * (1 + 1e-9)), default=inner[0])
        end = min((tick for tick in inner if tick >= high * (1 - 1e-9)), default=inner[-1])
        if start == end:
            end = 2 * start
            inner.append(end)
        ticks = sorted({tick for tick in inner if start <= tick <= end})
        return Scale(start, end, tuple(ticks), is_log=True)
    every = math.ceil(num_decades / 6)
    powers = range(bottom, top + 1, every)
    return Scale(10.0**bottom, 10.0**top, tuple(10.0**power for power in powers), is_log=True)


def _round_step(rough: float) -> float:
    """Return the next round number at or above `rough`: 1, 2, 2.5 or 5 times a power of ten."""
    if rough <= 0 or not math.isfinite(rough):
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    if power == 0.0:
        return rough
    return next(step * power for step in _STEPS if step * power >= rough * (1 - 1e-9))


def _in_powers(tick: float) -> str:
    if tick == 0:
        return "0"
    mantissa, _, power = f"{tick:.1e}".partition("e")
    return f"{float(mantissa):g}e{int(power)}".replace("-", "−")


def _unsigned_zero(text: str) -> str:
    return (text[1:] if text.startswith("-") and not text.strip("-0.,") else text).replace("-", "−")
