"""A small plot of losses for a terminal, in braille dots: two across and four down in each cell.

Losses are kept as at most `_MOST_BUCKETS` means of equally many steps, so that a run of a million steps
costs no more to keep and to draw than one of a thousand. `panel.py` puts the plot under the figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from llamafarm.training.screen.area import Line

_MOST_BUCKETS = 1024  # four for each dot across at the greatest width: a mean stays true to its place
_FEWEST_STEPS = 16  # that the axis spans at first, unless the run is shorter
_LARGEST = 1e30  # what a loss beyond it is drawn as: differences stay finite
_DOTS = (
    (0x01, 0x08),
    (0x02, 0x10),
    (0x04, 0x20),
    (0x40, 0x80),
)  # bits of a cell by row and column; Unicode 2800
_MARK = "◆"


class LossCurve:
    """Losses by step, thinned out to means as they grow. Steps come in rising order."""

    def __init__(self) -> None:
        self._stride = 1
        self._buckets: list[tuple[int, float, int]] = []  # index, sum and number of finite losses

    def add(self, step: int, loss: float) -> None:
        """Keep a loss; one that is not finite leaves a gap unless its bucket has others."""
        is_finite = math.isfinite(loss)
        self._merge(step // self._stride, loss if is_finite else 0.0, int(is_finite))
        if len(self._buckets) > _MOST_BUCKETS:
            buckets, self._buckets = self._buckets, []
            self._stride *= 2
            for index, total, count in buckets:
                self._merge(index // 2, total, count)

    def points(self) -> Iterator[tuple[float, float]]:
        """Yield the middle step and the mean loss of each bucket; NaN for one without a finite loss."""
        half = (self._stride - 1) / 2
        for index, total, count in self._buckets:
            mean = total / count if count else math.nan
            yield index * self._stride + half, min(max(mean, -_LARGEST), _LARGEST)

    def _merge(self, index: int, total: float, count: int) -> None:
        if self._buckets and self._buckets[-1][0] == index:
            _, old_total, old_count = self._buckets.pop()
            total, count = total + old_total, count + old_count
        self._buckets.append((index, total, count))


def steps_shown(first_step: int, step: int, last_step: int) -> int:
    """Return the last step on the axis: the run's, halved as often as what is done still fits.

    An axis that ended at the present step would move with every one; this one moves when it doubles.
    """
    num_steps = max(last_step - first_step, 1)
    num_shown = num_steps
    while num_shown > _FEWEST_STEPS and math.ceil(num_shown / 2) >= step - first_step:
        num_shown = math.ceil(num_shown / 2)
    return first_step + num_shown


def sketch_losses(
    train: LossCurve,
    evaluation: LossCurve,
    best: tuple[int, float] | None,
    *,
    first_step: int,
    last_step: int,
    width: int,
    height: int,
) -> list[Line]:
    """Return the plot as `height` lines of `width` cells: the train losses as a line, the others as marks.

    The axis goes from `first_step` to `last_step`. Losses far above the rest are drawn at the upper edge.
    """
    train_points, evaluation_points = list(train.points()), list(evaluation.points())
    low, high = _range_of([loss for _, loss in (*train_points, *evaluation_points) if loss == loss])
    labels = _label_rows(low, high, height - 1)
    label_width = max(map(len, labels))
    num_columns = max(width - label_width - 3, 1)
    canvas = _Canvas(num_columns, height - 1, (first_step, last_step), (low, high))
    canvas.draw_line(train_points)
    for step, loss in evaluation_points:
        canvas.mark(step, loss, "yellow")
    if best is not None:
        canvas.mark(*best, "green")
    lines: list[Line] = [
        [(f"{label:>{label_width}} {'┤' if label else '│'} ", "dim"), *canvas.row(row)]
        for row, label in enumerate(labels)
    ]
    lines.append([(" " * (label_width + 3) + _label_steps(first_step, last_step, num_columns), "dim")])
    return lines


class _Canvas:
    """Cells of dots, and of marks that lie over them."""

    def __init__(
        self, num_columns: int, num_rows: int, steps: tuple[int, int], losses: tuple[float, float]
    ) -> None:
        self._dots = [[0] * num_columns for _ in range(num_rows)]
        self._marks: dict[tuple[int, int], str] = {}
        self._steps = steps
        self._losses = losses
        self._last_x = num_columns * 2 - 1
        self._last_y = num_rows * 4 - 1

    def draw_line(self, points: Sequence[tuple[float, float]]) -> None:
        """Draw a line through the mean of the points over each dot of the width; NaN breaks it."""
        previous: tuple[int, int] | None = None
        for x, loss in _means_by_place((self._x(step), loss) for step, loss in points):
            if loss != loss:
                previous = None
                continue
            y = self._y(loss)
            from_x, from_y = previous or (x, y)
            at_y = from_y
            for at_x in range(from_x, x + 1):
                to_y = from_y + round((y - from_y) * (at_x - from_x) / max(x - from_x, 1))
                for dot_y in range(min(at_y, to_y), max(at_y, to_y) + 1):
                    self._dots[dot_y // 4][at_x // 2] |= _DOTS[dot_y % 4][at_x % 2]
                at_y = to_y
            previous = x, y

    def mark(self, step: float, loss: float, style: str) -> None:
        """Put a mark over the dots, unless its loss is not finite."""
        if math.isfinite(loss):
            self._marks[self._y(loss) // 4, self._x(step) // 2] = style

    def row(self, row: int) -> Line:
        """Return a row of cells, cells of one style in one piece."""
        pieces: list[tuple[str, str]] = []
        for column, dots in enumerate(self._dots[row]):
            style = self._marks.get((row, column))
            text, style = (chr(0x2800 + dots) if dots else " ", "cyan") if style is None else (_MARK, style)
            if pieces and pieces[-1][1] == style:
                text = pieces.pop()[0] + text
            pieces.append((text, style))
        return pieces

    def _x(self, step: float) -> int:
        first, last = self._steps
        return min(max(round((step - first) / max(last - first, 1) * self._last_x), 0), self._last_x)

    def _y(self, loss: float) -> int:
        low, high = self._losses
        return min(max(round((high - loss) / (high - low) * self._last_y), 0), self._last_y)


def _means_by_place(points: Iterator[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    place, total, count = -1, 0.0, 0
    for x, loss in points:
        if x != place:
            if place >= 0:
                yield place, total / count if count else math.nan
            place, total, count = x, 0.0, 0
        if loss == loss:
            total, count = total + loss, count + 1
    if place >= 0:
        yield place, total / count if count else math.nan


def _range_of(losses: list[float]) -> tuple[float, float]:
    """Return the losses at the lower and the upper edge; a few far above the rest do not flatten it."""
    if not losses:
        return 0.0, 1.0
    ordered = sorted(losses)
    low, usual = ordered[0], ordered[int(0.9 * (len(ordered) - 1))]
    high = min(ordered[-1], usual + (usual - low) / 2) if usual > low else ordered[-1]
    if high - low < 1e-4 * max(abs(low), 1e-3):
        pad = 0.05 * max(abs(low), 1e-3)
        return low - pad, high + pad
    return low, high


def _label_rows(low: float, high: float, num_rows: int) -> list[str]:
    """Return the losses at the upper, the middle and the lower row, to as many places as tell them apart."""
    magnitude = math.floor(math.log10(high - low))
    num_places = max(1 - magnitude, 2 if magnitude < 1 else 0)
    form = f".{num_places}f" if max(abs(low), abs(high)) < 1e4 and num_places <= 6 else ".1e"
    labels = [""] * num_rows
    for row in {0, num_rows // 2, num_rows - 1}:
        labels[row] = format(high - (high - low) * row / max(num_rows - 1, 1), form)
    return labels


def _label_steps(first_step: int, last_step: int, width: int) -> str:
    first, middle, last = (f"{step:,}" for step in (first_step, (first_step + last_step) // 2, last_step))
    if len(first) + len(middle) + len(last) + 4 > width:
        return first + last.rjust(max(width - len(first), len(last) + 1))
    room = width - len(first) - len(last)
    start = max(width // 2 - len(middle) // 2 - len(first), 1)
    return first + (" " * start + middle).ljust(room) + last
