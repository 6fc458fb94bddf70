"""All trackers of a run as one: what they are told, that a missing one is refused, that none ends a run."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from llamafarm import terminal
from llamafarm.errors import MachineError
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.sections.deployment import TrackerName
from llamafarm.training.run import run_training
from llamafarm.training.trackers.base import TrackedRun
from llamafarm.training.trackers.open import TRACKERS, Trackers, check_trackers, hide_secrets, track_run

Load = Callable[..., LoadedStrategy]
Event = tuple[str, Any]


class Fake:
    """A tracker that notes what it is told, and fails in one of its methods."""

    def __init__(self, events: list[Event], failing: str = "") -> None:
        self.events = events
        self.failing = failing

    def check(self) -> None:
        self.note("check", None)

    def start(self, run: TrackedRun) -> None:
        self.note("start", run)

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        self.note("log", (step, dict(metrics)))

    def finish(self, *, succeeded: bool) -> None:
        self.note("finish", succeeded)

    def note(self, method: str, told: Any) -> None:
        self.events.append((method, told))
        if method == self.failing:
            raise ConnectionError("https://me:secret@example.com is gone\nand more")


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(terminal, "warn", said.append)
    return said


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Event]]:
    """Put a fake in a tracker's place, and return what it will have been told."""

    def put_fake(name: str, failing: str = "") -> list[Event]:
        events: list[Event] = []
        monkeypatch.setitem(TRACKERS, name, lambda: Fake(events, failing))
        return events

    return put_fake


def test_every_tracker_that_a_strategy_may_name_is_in_the_table() -> None:
    assert tuple(TRACKERS) == get_args(TrackerName)


def test_a_tracker_is_told_of_its_run_in_order(
    put: Callable[..., list[Event]], tracked: TrackedRun, warnings: list[str]
) -> None:
    events = put("wandb")
    with Trackers(["wandb"], tracked) as trackers:
        trackers.log(1, {"train_loss": 2.5, "eval_loss": None, "grad_norm": math.inf, "tokens": 3})
        trackers.log(2, {"train_loss": math.nan, "eval_loss": None})
    assert events == [("start", tracked), ("log", (1, {"train_loss": 2.5, "tokens": 3})), ("finish", True)]
    assert warnings == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_ends_badly_is_told_as_failed_and_keeps_its_error(
    put: Callable[..., list[Event]], tracked: TrackedRun, error: type[BaseException]
) -> None:
    events = put("wandb")
    with pytest.raises(error), Trackers(["wandb"], tracked):
        raise error
    assert events[-1] == ("finish", False)


@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_one_that_fails_is_warned_of_once_and_left_alone(
    put: Callable[..., list[Event]], tracked: TrackedRun, warnings: list[str], method: str
) -> None:
    broken, sound = put("wandb", method), put("mlflow")
    with Trackers(["wandb", "mlflow"], tracked) as trackers:
        for step in (1, 2, 3):
            trackers.log(step, {"train_loss": 1.0})
    assert broken[-1][0] == method
    assert [name for name, _ in broken].count("log") == {"start": 0, "log": 1, "finish": 3}[method]
    assert [name for name, _ in sound] == ["start", "log", "log", "log", "finish"]
    (said,) = warnings
    assert "wandb" in said and "the run goes on" in said and "ConnectionError" in said
    assert "secret" not in said and "\n" not in said


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
@pytest.mark.parametrize("is_a_folder", [False, True])
def test_a_missing_library_is_refused_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, name: str, is_a_folder: bool
) -> None:
    # A folder beside the strategy, such as the wandb/ of earlier runs, is a module to Python, and no library.
    monkeypatch.setitem(sys.modules, name, ModuleType(name) if is_a_folder else None)
    if is_a_folder:
        sys.modules[name].__file__ = None
    with pytest.raises(MachineError) as caught:
        check_trackers(["tensorboard", name])
    error = caught.value
    assert error.problem == f"{name} is to be written to, and its library {name} is not installed"
    assert error.where == "monitoring.report_to"
    assert f"pip install 'llamafarm-finetune[{name}]'" in error.remedy
    assert error.exit_code == 3


def test_a_library_that_cannot_be_loaded_is_refused_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    (tmp_path / "trackio.py").write_text("from os import nothing_of_that_name")
    with pytest.raises(MachineError, match="cannot be loaded: cannot import name"):
        check_trackers(["trackio"])
    (tmp_path / "trackio.py").write_text("import a_module_that_is_not_there")
    with pytest.raises(MachineError, match="lacks a_module_that_is_not_there"):
        check_trackers(["trackio"])


def test_a_run_has_the_names_and_settings_of_its_strategy(
    put: Callable[..., list[Event]], load: Load, make_rows: Callable[..., Any], tmp_path: Path
) -> None:
    events = put("wandb")
    address = "http://me:secret@127.0.0.1:11434"
    strategy = {"monitoring__report_to": "wandb", "model_app__config__base_url": address}
    with track_run(load(make_rows(2), **strategy), tmp_path / "run"):
        pass
    run = events[0][1]
    assert (run.name, run.project, run.folder) == ("run", "s", tmp_path / "run" / "logs")
    assert run.settings["method.r"] == 4
    assert run.settings["method.target_modules"] == ["q_proj", "v_proj"]
    assert run.settings["model_app.config.base_url"] == "http://…@127.0.0.1:11434"
    with track_run(load(make_rows(2), monitoring__project="asthma", **strategy), tmp_path / "run"):
        pass
    assert events[2][1].project == "asthma"


def test_a_training_run_writes_to_the_trackers_that_its_strategy_names_and_survives_them(
    put: Callable[..., list[Event]],
    load: Load,
    make_rows: Callable[..., Any],
    warnings: list[str],
    tmp_path: Path,
) -> None:
    sound, broken = put("mlflow"), put("trackio", "log")
    named = {"monitoring__report_to": ["mlflow", "trackio"], "training_args__logging_steps": 2}
    run_training(load(make_rows(12), make_rows(4, seed=1), monitoring__log_tensorboard=True, **named))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (checked, _), (begun, _), *logged, ended = sound
    assert checked == "check", "before the run, once"
    assert (begun, ended) == ("start", ("finish", True))
    assert [step for _, (step, _) in logged][-2:] == [2, 3]
    for (method, told), line in zip(logged, lines, strict=True):
        finite = {name: value for name, value in line.items() if name != "step" and value is not None}
        assert (method, told) == ("log", (line["step"], finite))
    assert "eval_loss" in logged[-1][1][1]
    assert [method for method, _ in broken] == ["check", "start", "log"]
    assert len([said for said in warnings if "trackio is left alone" in said]) == 1
    assert (tmp_path / "run" / "final_model").is_dir()
    assert list((tmp_path / "run" / "logs").glob("events.out.tfevents.*")), "log_tensorboard names one, too"


def test_secrets_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a")
    assert hide_secrets("a key 0123456789abcdef is wrong") == "a key … is wrong"
