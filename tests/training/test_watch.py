"""A run watched while it goes on: each finding is said once, as what it is, and looking costs little."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from loss_curves import Curve, Line, falls, make_lines, settings_of, with_steps_down

from llamafarm import terminal
from llamafarm.findings.finding import Finding
from llamafarm.findings.speed import Seconds
from llamafarm.training import journal, watch
from llamafarm.training.watch import Watch

NO_TIME = Seconds(0, 0, 0, 0, 0, 0, 0)
UNKNOWN = (None, 0)
HEALTHY = falls(2.0, 1.2)
OVERFITS = Curve(with_steps_down(HEALTHY, 0.35), HEALTHY, num_epochs=3, num_evaluations=30)
# It rises, and is forgotten about: the training comes back and is fine in the end.
HICCUP = Curve(
    lambda way, epoch: HEALTHY(way, epoch) + (2.0 if 0.15 < way < 0.18 else 0.0),
    num_steps=600,
    schedule="constant",
    warmup_ratio=0.0,
)


class Watched:
    """A watch that notes what it says, and after how many lines."""

    def __init__(self, curve: Curve, **settings: Any) -> None:
        self.said: list[tuple[int, Finding]] = []
        self.num_lines = 0
        self.watch = Watch(
            settings_of(curve, **settings), lambda finding: self.said.append((self.num_lines, finding))
        )

    def observe(self, lines: Sequence[Line], seconds: Seconds = NO_TIME) -> None:
        for line in lines:
            self.num_lines += 1
            self.watch.observe(line, seconds, UNKNOWN)

    @property
    def names(self) -> list[str]:
        return [finding.name for _, finding in self.said]


@pytest.fixture
def num_looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function to how often all lines were gone over."""
    looks: list[int] = []
    history = watch.History

    def look(lines: Sequence[Line]) -> Any:
        looks.append(len(lines))
        return history(lines)

    monkeypatch.setattr(watch, "History", look)
    return lambda: len(looks)


def test_a_finding_is_said_once_when_it_is_first_seen() -> None:
    watched = Watched(OVERFITS)
    lines = make_lines(OVERFITS)
    watched.observe(lines)
    assert watched.names == ["overfitting-gap"]
    ((num_lines, finding),) = watched.said
    # Steps down of 0.35 come to the guide's 0.5 in the third epoch only.
    step = lines[num_lines - 1]["step"]
    assert 2 / 3 <= step / OVERFITS.num_steps < 0.85
    assert finding.step == step
    assert [one.name for one in watched.watch.conclude(NO_TIME, UNKNOWN)] == ["overfitting-gap"]
    assert watched.names == ["overfitting-gap"]


def test_what_has_passed_was_said_and_is_not_of_the_whole_run() -> None:
    watched = Watched(HICCUP)
    watched.observe(make_lines(HICCUP))
    assert watched.names[0] in ("learning-rate-too-high", "divergence")
    assert watched.said[0][0] < 300
    assert not {"learning-rate-too-high", "divergence"} & {
        finding.name for finding in watched.watch.conclude(NO_TIME, UNKNOWN)
    }


def test_what_is_only_seen_at_the_end_is_said_then() -> None:
    curve = Curve(HEALTHY, num_steps=100)
    watched = Watched(curve)
    watched.observe(make_lines(curve))
    assert watched.names == []
    slow = Seconds(100, 50, 0, 0, 0, 0, 100)
    for _ in range(2):
        assert [finding.name for finding in watched.watch.conclude(slow, UNKNOWN)] == ["slow-data"]
    assert watched.names == ["slow-data"]


def test_time_and_utilization_are_looked_at_too() -> None:
    curve = Curve(HEALTHY, num_steps=20)
    watched = Watched(curve)
    for line in make_lines(curve):
        watched.watch.observe(line, Seconds(1000, 0, 0, 0, 0, 0, 10), (0.3, 20))
    assert watched.names == ["idle-gpu"]


def test_a_run_that_goes_on_does_not_say_again_what_its_lines_show() -> None:
    lines = make_lines(OVERFITS)
    watched = Watched(OVERFITS)
    watched.watch.restore(lines[:-5])
    watched.observe(lines[-5:])
    assert watched.names == []
    assert [finding.name for finding in watched.watch.conclude(NO_TIME, UNKNOWN)] == ["overfitting-gap"]


def test_evaluations_of_another_kind_are_not_asked_about_the_learning_rate() -> None:
    curve = Curve(falls(2.0, 1.0), lambda way, epoch: 2.5 - 0.1 * way, num_epochs=2)
    watched = Watched(curve)
    watched.observe(make_lines(curve))
    assert watched.names == ["evaluation-drift"]


@pytest.mark.parametrize(("level", "function"), [("warning", "warn"), ("note", "say")])
def test_a_warning_is_one_and_a_note_is_a_message(
    level: Any, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, str]] = []
    for name in ("warn", "say"):
        monkeypatch.setattr(terminal, name, lambda line, name=name: said.append((name, line)))
    finding = Finding("forgot", level, "it rose", "Much is gone", "a lower method.r", 7)
    journal._say(finding)
    assert said == [(function, "forgot at step 7: it rose. Much is gone. Try: a lower method.r")]


@pytest.mark.parametrize("num_evaluations", [0, 2000], ids=["no evaluation", "many evaluations"])
def test_watching_20000_lines_takes_little(num_evaluations: int) -> None:
    curve = Curve(HEALTHY, HEALTHY, num_steps=1000, num_evaluations=num_evaluations // 20)
    once = make_lines(curve)
    lines = [
        line | {"step": number, "epoch": number / 10000} for number, line in enumerate(once * 20, start=1)
    ][:20000]
    watched = Watched(replace(curve, num_steps=20000))
    started = time.process_time()
    watched.observe(lines)
    assert time.process_time() - started < 3


def test_the_number_of_looks_grows_with_the_logarithm_of_the_lines(num_looks: Callable[[], int]) -> None:
    looks = []
    for num_evaluations in (0, 500):
        curve = Curve(HEALTHY, HEALTHY, num_steps=4000, num_evaluations=num_evaluations)
        lines, watched = make_lines(curve), Watched(curve)
        for first, last in ((0, 1000), (1000, 2000), (2000, 4000)):
            before = num_looks()
            watched.observe(lines[first:last])
            looks.append(num_looks() - before)
    # Each doubling takes log(2) / log(1.05) of them, and where there are evaluations log(2) / log(1.03) more.
    assert looks[1] == pytest.approx(14, abs=2) and looks[2] == pytest.approx(14, abs=2)
    assert looks[4] <= 40 and looks[5] <= 40
    assert looks[4] > looks[1]


def test_each_of_a_few_evaluations_is_looked_at(num_looks: Callable[[], int]) -> None:
    curve = replace(OVERFITS, num_steps=400, num_evaluations=10)
    watched = Watched(curve)
    evaluated = []
    for line in make_lines(curve):
        before = num_looks()
        watched.observe([line])
        if line["eval_loss"] is not None:
            evaluated.append(num_looks() - before)
    assert evaluated == [1] * 11
