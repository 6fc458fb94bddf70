"""The table of trackers, and all those of a run as one, of which none can end it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llamafarm import terminal
from llamafarm.redaction import hide_secrets, hide_users
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.strategy.schema import walk_leaves
from llamafarm.training.record import LOGS_FOLDER
from llamafarm.training.trackers.base import TrackedRun, Tracker
from llamafarm.training.trackers.mlflow import MLflow
from llamafarm.training.trackers.tensorboard import TensorBoard
from llamafarm.training.trackers.trackio import Trackio
from llamafarm.training.trackers.wandb import WeightsAndBiases

TRACKERS: dict[str, Callable[[], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}
"""By the names that `monitoring.report_to` takes; each opener loads its library only when it is used."""

_MOST_CHARACTERS = 200


def check_trackers(names: Sequence[str]) -> None:
    """Raise `MachineError` for the first of the trackers that cannot be used on this machine.

    Loads their libraries, which takes a second or two each; nothing is written, and nobody is asked.
    """
    for name in names:
        TRACKERS[name]().check()


def track_run(loaded: LoadedStrategy, folder: Path) -> Trackers:
    """Return the trackers that a strategy names, for a run that is known by its folder's name."""
    monitoring = loaded.strategy.monitoring
    run = TrackedRun(
        name=folder.absolute().name,
        project=monitoring.project or loaded.key,
        settings=tracked_settings(loaded),
        folder=folder / LOGS_FOLDER,
    )
    return Trackers(monitoring.trackers, run)


def tracked_settings(loaded: LoadedStrategy) -> dict[str, Any]:
    """Return a strategy's settings by dotted path, as JSON has them, without secrets."""
    tree = loaded.strategy.model_dump(mode="json")
    settings: dict[str, Any] = {}
    for path, _ in walk_leaves(loaded.strategy):
        value: Any = tree
        for key in path.split("."):
            value = value[key]
        settings[path] = hide_secrets(hide_users(value)) if isinstance(value, str) else value
    return settings


class Trackers:
    """The trackers of a run, as a context: they start with it, and finish with how it ended.

    One that fails is warned of once and left alone from then on.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun) -> None:
        self._run = run
        self._trackers = {name: TRACKERS[name]() for name in names}

    def __enter__(self) -> Self:
        """Start them all."""
        self._each(lambda tracker: tracker.start(self._run))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish them all."""
        self._each(lambda tracker: tracker.finish(succeeded=kind is None))

    def log(self, step: int, metrics: Mapping[str, float | int | None]) -> None:
        """Write the metrics of a step, without those that have no value or none that is finite."""
        finite = {
            name: value for name, value in metrics.items() if value is not None and math.isfinite(value)
        }
        if finite:
            self._each(lambda tracker: tracker.log(step, finite))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:
                del self._trackers[name]
                terminal.warn(f"{name} is left alone from here on, and the run goes on: {_show(error)}")


def _show(error: Exception) -> str:
    first_line = next(iter(str(error).strip().splitlines()), "")
    shown = hide_secrets(hide_users(f"{type(error).__name__}: {first_line}"))
    return shown if len(shown) <= _MOST_CHARACTERS else shown[: _MOST_CHARACTERS - 1] + "…"
