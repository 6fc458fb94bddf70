"""Weights & Biases: a run in the run's `logs/wandb/`, sent only where somebody has logged in.

Without a key it is an offline run, which `wandb sync` sends later. `WANDB_MODE` decides where it is set.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llamafarm.errors import MachineError
from llamafarm.training.trackers.base import SETTING, TrackedRun, install_remedy, load_library

_DEFAULT_ADDRESS = "https://api.wandb.ai"
# Longest times to wait for a server that does not answer: at the start, and at the end, where wandb itself
# would wait without limit. What was not sent stays in the folder.
_START_SECONDS = 30.0
_FINISH_SECONDS = 60.0


class WeightsAndBiases:
    """A run of wandb, offline unless there is a key to send it with."""

    def __init__(self) -> None:
        self._run: Any = None

    def check(self) -> None:
        """Raise `MachineError` without the library, or where a run is to be sent and there is no key."""
        _load()
        if os.environ.get("WANDB_MODE", "").casefold() == "online" and not has_key():
            raise MachineError(
                "WANDB_MODE is online, and wandb has no API key to send the run with",
                where=SETTING,
                remedy="Run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline.",
            )

    def start(self, run: TrackedRun) -> None:
        """Begin a run that leaves our output and the machine alone."""
        wandb = _load()
        run.folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            init_timeout=_START_SECONDS,
            login_timeout=_START_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        # With a key, wandb's own settings still decide: `wandb offline` is obeyed.
        decided = bool(os.environ.get("WANDB_MODE")) or has_key()
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            config=dict(run.settings),
            dir=str(run.folder),
            mode=None if decided else "offline",
            settings=settings,
        )

    def log(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Write the metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def finish(self, *, succeeded: bool) -> None:
        """End the run, as failed unless it succeeded."""
        self._run.finish(exit_code=0 if succeeded else 1)


def has_key() -> bool:
    """Return whether wandb has an API key: `WANDB_API_KEY`, or a line for its server in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _DEFAULT_ADDRESS).hostname
    try:
        places = [Path(os.environ.get("NETRC") or "~/.netrc"), Path("~/_netrc")]
        files = [place.expanduser() for place in places]
        return any(file.is_file() and _has_entry(file, host or "") for file in files)
    except (OSError, RuntimeError):  # a home folder that cannot be told, a file that cannot be read
        return False


def _has_entry(file: Path, host: str) -> bool:
    try:
        # `hosts` and not `authenticators`, which takes the default entry for any host.
        return host in netrc.netrc(str(file)).hosts
    except (netrc.NetrcParseError, UnicodeDecodeError):
        return False


def _load() -> Any:
    # It would report its own errors to its makers, offline too; and say where it found a key, before it knows
    # of the settings that keep it silent.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    return load_library("wandb", install_remedy("wandb"), tracker="wandb")
