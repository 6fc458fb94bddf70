"""The live view of a run: on a terminal of any size, and in a log file."""

from __future__ import annotations

import io
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from llamafarm import terminal
from llamafarm.training import live
from llamafarm.training.live import LiveView, StepFigures
from llamafarm.training.screen.panel import Shown, draw_panel, show_seconds
from llamafarm.training.screen.sketch import LossCurve, sketch_losses, steps_shown

GIB = 2**30
BRAILLE = re.compile("[\u2801-\u28ff]")


def figures(step: int, num_steps: int = 100, loss: float = 1.2345, gpu: float | None = 0.97) -> StepFigures:
    return StepFigures(
        step=step,
        num_steps=num_steps,
        epoch=3 * step / max(num_steps, 1),
        num_epochs=3,
        train_loss=loss,
        learning_rate=2e-4,
        grad_norm=0.912,
        num_tokens=52_104,
        seconds=10.0,
        part_of_peak=0.42,
        memory_bytes=5 * GIB,
        memory_limit_bytes=24 * GIB,
        gpu_utilization=gpu,
    )


class Screen(io.StringIO):
    """What a terminal shows: it folds lines, and folds them again when it gets narrower."""

    width = 100
    height = 30

    def isatty(self) -> bool:
        return True

    def resize(self, width: int) -> None:
        rows = self.rows()
        self.seek(0)
        self.truncate()
        for place, row in enumerate(rows):
            self.write(row + ("\n" if place < len(rows) - 1 else ""))
        Screen.width = width

    def rows(self) -> list[str]:
        rows, row, column = [""], 0, 0
        for code, final, character in re.findall(r"\x1b\[\??([\d;]*)([A-Za-z])|([^\x1b])", self.getvalue()):
            if final == "A":
                row = max(row - int(code), 0)
            elif final == "K":
                rows[row] = ""
            elif final in ("m", "h", "l"):
                pass
            elif character == "\r":
                column = 0
            elif character == "\n" or column == self.width:
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            if character and character not in "\r\n":
                rows[row] = rows[row][:column].ljust(column) + character + rows[row][column + 1 :]
                column += 1
            assert not final or final in "AKmhl", f"a code that this terminal lacks: {code}{final}"
        return rows


class Clock:
    """A time that passes when told to."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(autouse=True)
def mode(monkeypatch: pytest.MonkeyPatch) -> terminal.Mode:
    own = terminal.Mode()
    monkeypatch.setattr(terminal, "mode", own)
    return own


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live, "_now", clock)
    return clock


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal of 100 by 30."""
    screen = Screen()
    monkeypatch.setattr(Screen, "width", 100)

    class Terminal(Console):
        @property
        def width(self) -> int:
            return screen.width

        @property
        def size(self) -> object:
            from rich.console import ConsoleDimensions

            return ConsoleDimensions(screen.width, screen.height)

    console = Terminal(
        file=screen,
        force_terminal=True,
        force_interactive=True,
        color_system="standard",
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
        _environ={},
    )
    monkeypatch.setattr(terminal, "console", lambda: console)
    return screen


def text_of(shown: Shown, width: int, height: int) -> list[str]:
    return ["".join(text for text, _ in line) for line in draw_panel(shown, width, height)]


def shown_after(num_steps: int, loss_of: Callable[[int], float], gpu: float | None = 0.97) -> Shown:
    shown = Shown("medical", num_steps, 0, 24 * GIB)
    for step in range(1, num_steps + 1):
        shown.train_curve.add(step, loss_of(step))
        shown.figures = figures(step, num_steps, loss_of(step), gpu)
    return shown


def test_a_panel_shows_everything_and_stays_without_its_phase(screen: Screen, clock: Clock) -> None:
    with LiveView("medical", 100, memory_limit_bytes=24 * GIB) as view:
        for step in range(1, 51):
            clock.seconds += 2
            view.on_step(figures(step, loss=3 - step / 25))
        view.on_evaluation(50, 1.5, 4.4817, is_best=True)
        clock.seconds += 1
        view.on_phase("evaluating")
        during = "\n".join(screen.rows())
    after = "\n".join(screen.rows())
    for text in (
        *("─ medical ─", " 50 %", "step 50 of 100", "epoch 1.50 of 3", "1:41 elapsed", "5,210"),
        *("1.0000", "↓", "1.5000  best", "4.482", "2.0e-04", "0.912", "42 %", "5.0 of 24.0 GiB", "97 %", "◆"),
    ):
        assert text in during, text
        assert text in after, text
    assert "evaluating" in during
    assert "1:39 left" in during
    assert "evaluating" not in after
    assert "left" not in after
    assert after.count("╭") == after.count("╰") == 1
    assert len(BRAILLE.findall(after)) > 20


def test_messages_stay_above_the_panel(screen: Screen, clock: Clock) -> None:
    with LiveView("medical", 100) as view:
        for step in range(1, 4):
            clock.seconds += 1
            view.on_step(figures(step))
            terminal.say(f"message {step} " + "x" * 150)
            sys.stderr.write(f"written by a library {step}\n")
    terminal.say("the end")
    rows = screen.rows()
    first = next(row for row, text in enumerate(rows) if text.startswith("╭"))
    assert [row.split(" x")[0] for row in rows[:first] if row.startswith("message")] == [
        f"message {step}" for step in (1, 2, 3)
    ]
    assert [row for row in rows[:first] if row.startswith("written")] == [
        f"written by a library {step}" for step in (1, 2, 3)
    ]
    last = next(row for row, text in enumerate(rows) if text.startswith("╰"))
    assert rows[last + 1].rstrip() == "the end"
    assert all(len(row) == 100 for row in rows[first : last + 1])


@pytest.mark.parametrize("width", [40, 59, 75, 99, 120, 200])
def test_a_panel_is_whole_after_the_terminal_changed_its_width(
    screen: Screen, clock: Clock, width: int
) -> None:
    with LiveView("medical", 100) as view:
        terminal.say("a message")
        view.on_step(figures(1))
        screen.resize(width)
        clock.seconds += 1
        view.on_step(figures(2))
        terminal.say("another")
    rows = [row.rstrip() for row in screen.rows()]
    assert rows[:2] == ["a message", "another"]
    assert rows[2].startswith("╭")
    assert {len(row) for row in rows[2:] if row} == {min(width, 120)}
    assert sum("╭" in row for row in rows) == 1


def test_a_step_costs_microseconds_and_drawing_is_rare(screen: Screen) -> None:
    seconds = []
    with LiveView("medical", 5000) as view:
        started = time.perf_counter()
        for step in range(1, 5001):
            before = time.perf_counter()
            view.on_step(figures(step, 5000))
            seconds.append(time.perf_counter() - before)
        passed = time.perf_counter() - started
    assert sorted(seconds)[2500] < 1e-4
    assert screen.getvalue().count("╭") <= 3 + passed * 5


def test_drawing_takes_a_small_part_of_the_time(
    screen: Screen, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw_slowly(shown: Shown, width: int, height: int) -> list[list[tuple[str, str]]]:
        clock.seconds += 0.005
        return [[("drawn", "")]]

    monkeypatch.setattr(live, "draw_panel", draw_slowly)
    with LiveView("medical", 1000) as view:
        for step in range(1, 1001):
            clock.seconds += 0.01
            view.on_step(figures(step, 1000))
    assert screen.getvalue().count("drawn") <= 14


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_log_file_gets_a_line_every_tenth(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with LiveView("medical", 1200) as view:
        for step in range(1, 1201):
            clock.seconds += 0.1
            view.on_step(figures(step, 1200))
        view.on_evaluation(1200, 1.0, 2.7, is_best=True)
        view.on_phase("saving")
    lines = lines_of(capsys)
    assert lines[0] == (
        "step 120/1200  epoch 0.30  loss 1.2345  lr 2.0e-04  grad_norm 0.91  5,210 tokens/s  1:48 left"
    )
    assert [line.split()[1] for line in lines] == [f"{step}/1200" for step in range(120, 1201, 120)]


def test_a_line_has_the_speed_of_all_steps_since_the_one_before(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with LiveView("medical", 100) as view:
        for step in range(1, 21):
            clock.seconds += 1
            few = replace(figures(step, 100), num_tokens=10 if step % 10 == 0 else 1000, seconds=1.0)
            view.on_step(few)
    assert ["901 tokens/s" in line for line in lines_of(capsys)] == [True, True]


@pytest.mark.parametrize(
    ("num_steps", "seconds", "least", "most"),
    [
        (20, 30, 10, 20),
        (20, 90, 20, 20),
        (2000, 30, 30, 45),
        (50, 3600, 20, 45),
        (100_000, 1, 30, 45),
        (3, 1, 3, 3),
    ],
)
def test_a_log_file_of_a_long_run_has_a_line_a_minute_at_first_and_about_forty_in_all(
    capsys: pytest.CaptureFixture[str], clock: Clock, num_steps: int, seconds: float, least: int, most: int
) -> None:
    with LiveView("medical", num_steps) as view:
        for step in range(1, num_steps + 1):
            clock.seconds += seconds
            view.on_step(figures(step, num_steps))
    assert least <= len(lines_of(capsys)) <= most


@pytest.mark.parametrize("change", [{"is_quiet": True}, {"prints_json": True}, {"log_level": "warning"}])
@pytest.mark.parametrize("on_screen", [False, True])
def test_nothing_is_shown_where_messages_are_not(
    mode: terminal.Mode,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    change: dict[str, object],
    on_screen: bool,
) -> None:
    screen = request.getfixturevalue("screen") if on_screen else io.StringIO()
    for name, value in change.items():
        setattr(mode, name, value)
    with LiveView("medical", 2) as view:
        view.on_step(figures(1, 2))
        view.on_phase("evaluating")
        view.on_evaluation(1, 1.0, 2.7, is_best=True)
    assert screen.getvalue() == ""
    assert lines_of(capsys) == []


def test_a_run_that_goes_on_counts_its_time_from_where_it_went_on(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with LiveView("medical", 100, num_done=90) as view:
        for step in range(91, 101):
            clock.seconds += 6
            view.on_step(figures(step))
    lines = lines_of(capsys)
    assert lines[0].startswith("step 100/100")
    assert lines[0].endswith("0:00 left")


def test_time_left_follows_how_long_steps_take_of_late_and_ticks(clock: Clock) -> None:
    pace = live._Pace(0.0, 0)
    assert pace.seconds_left(5.0, 100) is None
    now = 0.0
    for step in range(1, 301):
        now += 10 if step <= 20 else 2
        pace.add(now, step)
    assert pace.seconds_left(now, 400) == pytest.approx(200)
    assert pace.seconds_left(now + 1.5, 400) == pytest.approx(198.5)
    assert pace.seconds_left(now + 900, 400) == pytest.approx(198)
    assert pace.seconds_left(now + 1, 300) == 0.0


@pytest.mark.parametrize(
    ("loss_of", "expected"),
    [
        (lambda step: 3 - step / 100, "down"),
        (lambda step: 1 + step / 100, "up"),
        (lambda step: 1 + 0.2 * math.sin(step * 2.4), "steady"),
        (lambda step: math.nan, None),
        (lambda step: math.nan if step % 2 else 3 - step / 100, "down"),
    ],
)
def test_the_trend_is_that_of_the_smoothed_loss(
    loss_of: Callable[[int], float], expected: str | None
) -> None:
    trend = live._Trend(200)
    changes = [trend.add(loss_of(step)) for step in range(1, 201)]
    assert changes[0] is None
    last = changes[-1]
    found = None if last is None else "steady" if last == 0 else "down" if last < 0 else "up"
    assert found == expected


@pytest.mark.parametrize("height", [12, 20, 24, 50])
@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("gpu", [None, 0.5])
def test_a_panel_fits_its_terminal(width: int, height: int, gpu: float | None) -> None:
    lines = text_of(shown_after(300, lambda step: 3 - step / 200, gpu), width, height)
    assert {cell_len(line) for line in lines} == {min(width, 120)}
    assert len(lines) < height
    assert lines[0].startswith("╭─ medical")
    assert lines[-1].startswith("╰")
    has_plot = width >= 60 and height >= 20
    assert bool(BRAILLE.search("".join(lines).replace("⠒⠒", ""))) == has_plot
    if height >= 20:
        assert any("GPU" in line for line in lines) == (gpu is not None)


def test_what_is_said_of_a_figure_is_left_out_rather_than_cut() -> None:
    shown = shown_after(100, lambda step: 1.5)
    shown.evaluation, shown.best, shown.trend = (1.4, 4.0), (50, 1.3), -0.25
    wide, narrow = "\n".join(text_of(shown, 80, 24)), "\n".join(text_of(shown, 30, 24))
    assert "1.4000  best 1.3000" in wide
    assert "1.5000  ↓ 0.2500" in wide
    assert "1.4000  " in narrow
    assert "best" not in narrow
    assert "1.5000  ↓  " in narrow


def test_a_title_of_wide_characters_is_cut_to_the_frame() -> None:
    for title in ("模型" * 40, "a\x1b[31mb\n", "🦙" * 30):
        view = LiveView(title, 10)
        for width in (20, 41, 80):
            lines = text_of(view._shown, width, 24)
            assert {cell_len(line) for line in lines} == {width}
            assert not re.search(r"[\x00-\x1f]", "".join(lines))


any_loss = st.floats() | st.floats(0, 10)


@settings(max_examples=150, deadline=None)
@given(
    losses=st.lists(any_loss, max_size=60),
    evaluations=st.lists(any_loss, max_size=5),
    width=st.integers(1, 220),
    height=st.integers(1, 60),
    num_steps=st.integers(0, 10**7),
)
def test_nothing_ever_raises_and_no_line_is_too_wide(
    losses: list[float], evaluations: list[float], width: int, height: int, num_steps: int
) -> None:
    view = LiveView("some title", num_steps)
    trend = live._Trend(num_steps)
    for step, loss in enumerate(losses, 1):
        view._shown.figures = figures(step, num_steps, loss)
        view._shown.train_curve.add(step, loss)
        view._shown.trend = trend.add(loss)
    for step, loss in enumerate(evaluations, 1):
        view.on_evaluation(step, loss, loss, is_best=step % 2 == 0)
    lines = text_of(view._shown, width, height)
    assert all(cell_len(line) <= width for line in lines)
    assert len(lines) <= max(height - 1, 1)


def test_a_curve_keeps_the_mean_of_every_part_of_a_long_run() -> None:
    curve = LossCurve()
    for step in range(1, 100_001):
        curve.add(step, float(step))
    points = list(curve.points())
    assert 400 < len(points) <= 1024
    assert all(loss == pytest.approx(step, abs=points[1][0] - points[0][0]) for step, loss in points)


def plot(losses: list[float], width: int = 60, last_step: int | None = None) -> list[str]:
    curve = LossCurve()
    for step, loss in enumerate(losses, 1):
        curve.add(step, loss)
    lines = sketch_losses(
        curve, LossCurve(), None, first_step=0, last_step=last_step or len(losses), width=width, height=7
    )
    return ["".join(text for text, _ in line) for line in lines]


def test_a_plot_falls_where_losses_fall_and_names_its_edges() -> None:
    rows = plot([3 - step / 100 for step in range(200)])
    places = [match.start() for row in rows[:-1] if (match := BRAILLE.search(row))]
    assert places == sorted(places)
    assert len(places) == 6
    assert [rows[row].split()[0] for row in (0, 3, 5)] == ["3.00", "1.81", "1.01"]
    assert rows[-1].split() == ["0", "100", "200"]


def test_a_plot_has_a_gap_where_no_loss_is_finite_and_a_spike_does_not_flatten_it() -> None:
    losses = [2 + math.sin(step / 9) for step in range(100)]
    with_gap = plot(losses[:40] + [math.nan, math.inf] * 10 + losses[60:])
    assert all(not BRAILLE.search(row[32:36]) for row in with_gap[:-1])
    with_spike = plot([*losses[:50], 1e6, *losses[51:]])
    assert float(with_spike[0].split()[0]) < 5
    assert len([row for row in with_spike[:-1] if BRAILLE.search(row)]) == 6


def test_a_single_loss_is_a_dot_in_the_middle() -> None:
    rows = plot([1.5], last_step=10)
    assert [len(BRAILLE.findall(row)) for row in rows].count(1) == 1
    assert sum(len(BRAILLE.findall(row)) for row in rows) == 1


def test_the_axis_of_steps_moves_only_when_it_doubles() -> None:
    ends = [steps_shown(0, step, 1200) for step in range(1, 1201)]
    assert all(end >= step for step, end in enumerate(ends, 1))
    assert sorted(set(ends)) == [10, 19, 38, 75, 150, 300, 600, 1200]
    assert ends == sorted(ends)
    assert steps_shown(900, 950, 1200) == 975
    assert steps_shown(5, 5, 5) == 6


def test_times_are_shown_as_a_clock_does() -> None:
    assert [show_seconds(seconds) for seconds in (0, 59.6, 754, 3723)] == ["0:00", "1:00", "12:34", "1:02:03"]
