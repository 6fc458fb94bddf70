"""What a tracker is told of a run, and what it can do with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from llamafarm.errors import MachineError

SETTING = "monitoring.report_to"


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as its trackers know it.

    `settings` are those of the strategy by dotted path, as JSON has them and without secrets; `folder` is for
    the files of trackers that write there.
    """

    name: str
    project: str
    settings: Mapping[str, Any]
    folder: Path


class Tracker(Protocol):
    """A place for metrics. Made without side effects; what it raises from `start` on never ends a run."""

    def check(self) -> None:
        """Raise `MachineError` if the tracker cannot be used here, without writing or asking anything."""

    def start(self, run: TrackedRun) -> None:
        """Begin a run of its own."""

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Write the metrics of a step; all are finite."""

    def finish(self, *, succeeded: bool) -> None:
        """Write what is left, and how the run ended."""


def load_library(name: str, remedy: str, *, tracker: str) -> ModuleType:
    """Return a tracker's library. Raises `MachineError` if it is not there or cannot be loaded."""
    problem = f"{tracker} is to be written to, and its library {name} is not installed"
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            problem = f"{tracker} is to be written to, and its library {name} lacks {error.name}"
        raise MachineError(problem, where=SETTING, remedy=remedy) from None
    except ImportError as error:
        problem = f"{tracker} is to be written to, and its library {name} cannot be loaded: {error}"
        raise MachineError(" ".join(problem.split()), where=SETTING, remedy=remedy) from None
    # A folder of that name, such as the `wandb/` that earlier runs left where we work, is a module, too.
    if module.__file__ is None:
        raise MachineError(problem, where=SETTING, remedy=remedy)
    return module


def install_remedy(extra: str) -> str:
    """Return what to try where an extra's library is missing."""
    return f"Install it: pip install 'llamafarm-finetune[{extra}]', or take {extra} out of report_to."
