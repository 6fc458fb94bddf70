"""The live view of a training run: a panel on a terminal, a line now and then in a log file.

In `screen/`, `panel.py` draws it, `sketch.py` its plot, and `area.py` keeps both at the terminal's foot.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from threading import RLock
from typing import Self

from llamafarm import terminal
from llamafarm.training.screen.area import Line, LiveArea
from llamafarm.training.screen.panel import Shown, StepFigures, draw_panel, show_loss, show_seconds

__all__ = ["LiveView", "StepFigures"]

# Between two drawings asked for by steps: at most four a second, and so many times as long as one takes that
# the view costs training half a percent at most, also over a slow connection.
_SECONDS_A_DRAWING = 0.25
_TIMES_A_DRAWING = 200
_MOST_SECONDS_A_DRAWING = 2.0

# In a log file: after every tenth of the steps, and a thirtieth of the run's time, but not within a minute.
_NUM_TENTHS = 10
_NUM_LINES_BY_TIME = 30
_SECONDS_A_LINE = 60.0

_LEAST_STEPS_OF_A_TREND, _MOST_STEPS_OF_A_TREND = 10, 200

_now = time.monotonic


class LiveView:
    """Show how a run gets on, while the context lasts; then the panel stays as it was last.

    A call costs some microseconds where no drawing is due. Nothing is shown with `--quiet` or `--json`, and
    where messages are not.
    """

    def __init__(
        self, title: str, num_steps: int, *, memory_limit_bytes: int | None = None, num_done: int = 0
    ) -> None:
        """Show steps `num_done + 1` to `num_steps`; a run that goes on has some done already."""
        title = "".join(character if character.isprintable() else " " for character in title)
        self._shown = Shown(title, num_steps, num_done, memory_limit_bytes)
        self._is_shown = terminal.shows("info") and not terminal.mode.prints_json
        self._area: LiveArea | None = None
        # rich's thread draws while a step may be adding to the curves, and a signal's handler may speak.
        self._lock = RLock()
        self._lines: tuple[tuple[int, int], float, Sequence[Line]] | None = None
        self._is_over = False
        # Tokens and seconds of the steps since the last line.
        self._unsaid = 0, 0.0

    def __enter__(self) -> Self:
        self._started = self._next_drawing = self._last_line = _now()
        self._pace = _Pace(self._started, self._shown.num_done)
        self._trend = _Trend(self._shown.num_steps)
        if self._is_shown and terminal.has_screen():
            self._area = LiveArea(self._draw).__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._area is not None:
            with self._lock:
                self._shown.phase, self._lines, self._is_over = None, None, True
            self._area.__exit__(*exception)
            self._area = None

    def on_step(self, figures: StepFigures) -> None:
        """Show an optimizer step that was taken."""
        now = _now()
        with self._lock:
            self._shown.figures = figures
            self._shown.train_curve.add(figures.step, figures.train_loss)
            self._shown.trend = self._trend.add(figures.train_loss)
            self._pace.add(now, figures.step)
        num_tokens, seconds = self._unsaid
        self._unsaid = num_tokens + figures.num_tokens, seconds + figures.seconds
        if self._area is None:
            if self._is_shown and self._is_line_due(now, figures):
                terminal.say(self._line_of(now, figures))
                self._last_line, self._unsaid = now, (0, 0.0)
        else:
            self._redraw_if_due(now)

    def on_evaluation(self, step: int, loss: float, perplexity: float, *, is_best: bool) -> None:
        """Show an evaluation, on a terminal; in a log file the caller's own line says how it went."""
        with self._lock:
            self._shown.evaluation = loss, perplexity
            self._shown.evaluation_curve.add(step, loss)
            self._shown.is_best = is_best
            if is_best:
                self._shown.best = step, loss
        self._redraw_if_due(_now())

    def on_phase(self, name: str | None) -> None:
        """Show what is done between two steps, such as `evaluating`; None when it is over."""
        with self._lock:
            self._shown.phase = name
        self._redraw_if_due(_now())

    def _redraw_if_due(self, now: float) -> None:
        """Draw, unless that was done a moment ago."""
        # Most drawings are done here, between steps. rich's thread adds one a second (1.5 ms), without which
        # the clock would stand still through a step of a minute.
        if self._area is None or now < self._next_drawing:
            return
        self._lines = None
        self._area.redraw()
        pause = max(_SECONDS_A_DRAWING, _TIMES_A_DRAWING * (_now() - now))
        self._next_drawing = now + min(pause, _MOST_SECONDS_A_DRAWING)

    def _draw(self, width: int, height: int) -> Sequence[Line]:
        """Return the panel's lines; the last ones, where messages make rich draw it again at once."""
        with self._lock:
            now = _now()
            if self._lines and self._lines[0] == (width, height) and now < self._lines[1]:
                return self._lines[2]
            shown = self._shown
            shown.seconds = now - self._started
            shown.seconds_left = None if self._is_over else self._pace.seconds_left(now, shown.num_steps)
            lines = draw_panel(shown, width, height)
            self._lines = (width, height), now + _SECONDS_A_DRAWING, lines
            return lines

    def _is_line_due(self, now: float, figures: StepFigures) -> bool:
        tenth, tenth_before = (
            step * _NUM_TENTHS // max(figures.num_steps, 1) for step in (figures.step, figures.step - 1)
        )
        left = self._pace.seconds_left(now, figures.num_steps) or 0.0
        pause = max(_SECONDS_A_LINE, (now - self._started + left) / _NUM_LINES_BY_TIME)
        return tenth != tenth_before or now - self._last_line >= pause

    def _line_of(self, now: float, figures: StepFigures) -> str:
        seconds_left = self._pace.seconds_left(now, figures.num_steps)
        left = f"  {show_seconds(seconds_left)} left" if seconds_left is not None else ""
        num_tokens, seconds = self._unsaid
        return (
            f"step {figures.step}/{figures.num_steps}  epoch {figures.epoch:.2f}  "
            f"loss {show_loss(figures.train_loss)}  lr {figures.learning_rate:.1e}  "
            f"grad_norm {show_loss(figures.grad_norm, 2)}  {num_tokens / seconds:,.0f} tokens/s{left}"
        )


class _Pace:
    """How long steps take of late, by the clock on the wall: evaluating and saving count.

    Of late means the second half of the run so far, and at least two minutes: long enough for the rhythm of
    evaluations not to show, short enough to forget how slow the first steps were.
    """

    _LEAST_SECONDS = 120.0
    _NUM_MARKS = 64  # that the time looked back on is cut into

    def __init__(self, now: float, step: int) -> None:
        self._started = now
        self._marks = deque([(now, step)])
        self._last = now, step

    def add(self, now: float, step: int) -> None:
        """Note that `step` ended now."""
        self._last = now, step
        window = max(self._LEAST_SECONDS, (now - self._started) / 2)
        if now - self._marks[-1][0] >= window / self._NUM_MARKS:
            self._marks.append((now, step))
        while len(self._marks) > 1 and self._marks[1][0] <= now - window:
            self._marks.popleft()

    def seconds_left(self, now: float, num_steps: int) -> float | None:
        """Return how long the rest takes; None before the first step. It goes down while a step is taken."""
        (first_time, first_step), (last_time, last_step) = self._marks[0], self._last
        if last_step <= first_step:
            return None
        seconds_a_step = (last_time - first_time) / (last_step - first_step)
        since = min(now - last_time, seconds_a_step)
        return max((num_steps - last_step) * seconds_a_step - since, 0.0)


class _Trend:
    """The change of the smoothed loss over a tenth of the run."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = min(max(num_steps // 10, _LEAST_STEPS_OF_A_TREND), _MOST_STEPS_OF_A_TREND)
        self._smoothed: deque[float] = deque(maxlen=self._num_steps + 1)
        self._num_losses = 0
        self._deviation = 0.0

    def add(self, loss: float) -> float | None:
        """Count a loss in, unless it is not finite, and return the change; 0 where that is only noise.

        None in the first steps.
        """
        if math.isfinite(loss):
            self._num_losses += 1
            # A plain mean at first: else the first loss would weigh as much as the next ten.
            weight = max(3 / self._num_steps, 1 / self._num_losses)
            before = self._smoothed[-1] if self._smoothed else loss
            self._smoothed.append(before + weight * (loss - before))
            self._deviation += weight * (abs(loss - before) - self._deviation)
        if len(self._smoothed) <= _LEAST_STEPS_OF_A_TREND // 2:
            return None
        change = self._smoothed[-1] - self._smoothed[0]
        # Of smoothed losses that only scatter, the difference is sqrt(3 / steps) of a loss's scatter.
        noise = 2 * self._deviation * math.sqrt(3 / self._num_steps)
        return change if abs(change) > noise else 0.0
