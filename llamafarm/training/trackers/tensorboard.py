"""TensorBoard: event files in the run's `logs/`, for `tensorboard --logdir`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llamafarm.training.trackers.base import TrackedRun, load_library

_REMEDY = "Install it: pip install tensorboard, or take tensorboard out of report_to."


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self) -> None:
        self._board: Any = None

    def check(self) -> None:
        """Raise `MachineError` without the library."""
        load_library("tensorboard", _REMEDY, tracker="tensorboard")

    def start(self, run: TrackedRun) -> None:
        """Open an event file, with the settings as its first text."""
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(run.folder))
        # Four blanks before a line of Markdown keep it as it stands.
        lines = json.dumps(dict(run.settings), indent=2, ensure_ascii=False).splitlines()
        self._board.add_text("settings", "\n".join(f"    {line}" for line in lines), 0)

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Write a scalar for each metric."""
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def finish(self, *, succeeded: bool) -> None:
        """Close the file; it has no place for how a run ended."""
        self._board.close()
