"""Trackio: a run in its database on this machine, `TRACKIO_DIR` or its own place, for `trackio show`.

That place and not the run's folder, because Trackio shows the runs of a project beside each other.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from llamafarm.confined import check_name
from llamafarm.training.trackers.base import TrackedRun, install_remedy, load_library

# Each would have the metrics sent.
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Trackio:
    """A run of Trackio, on this machine only."""

    def __init__(self) -> None:
        self._run: Any = None

    def check(self) -> None:
        """Raise `MachineError` without the library."""
        _load()

    def start(self, run: TrackedRun) -> None:
        """Begin a run in the local database."""
        trackio = _load()
        check_name(run.project, where="monitoring.project")  # its database is a file of that name
        with _kept_here(), _failing_aloud():
            self._run = trackio.init(
                project=run.project,
                name=run.name,
                config=dict(run.settings),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            # The run is ours to finish: Trackio would do it again at the end of the process, on stdout.
            trackio.context_vars.current_run.set(None)

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Hand the metrics of a step to Trackio's own thread, which writes them."""
        with _failing_aloud():
            self._run.log(dict(metrics), step=step)

    def finish(self, *, succeeded: bool) -> None:
        """Wait for what is not written yet; Trackio has no place for how a run ended."""
        with _failing_aloud():
            self._run.finish()


@contextmanager
def _kept_here() -> Iterator[None]:
    """Hide what would have a run sent, and the Hub, which Trackio asks for the user's name."""
    from huggingface_hub import constants

    hidden = {name: os.environ.pop(name) for name in _ELSEWHERE if name in os.environ}
    was_offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline
        os.environ.update(hidden)


@contextmanager
def _failing_aloud() -> Iterator[None]:
    """Keep Trackio's lines off stdout, where results go; raise what it would only warn of."""
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(StringIO()):
        warnings.simplefilter("always")
        yield
    told = [warning for warning in caught if "trackio" in Path(warning.filename).parts]
    if told:
        raise RuntimeError(str(told[0].message))


def _load() -> Any:
    return load_library("trackio", install_remedy("trackio"), tracker="trackio")
