"""Trackio's database on this machine, read back with sqlite."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from llamafarm.training.trackers.base import TrackedRun
from llamafarm.training.trackers.trackio import Trackio


def rows_of(folder: Path) -> list[tuple[int, dict[str, float]]]:
    (file,) = folder.glob("*.db")
    with sqlite3.connect(file) as database:
        found = database.execute(
            "select step, metrics from metrics where run_name = 'asthma-run' order by step"
        )
        return [(step, json.loads(metrics)) for step, metrics in found]


def test_a_run_is_in_the_local_database_and_nothing_is_sent(
    tracked: TrackedRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("trackio.run")
    # In a process of its own, whose place is that of the test, with all that would have the run sent.
    code = f"""
import socket
sent = []
def refuse(*rest, **options):
    sent.append(rest)
    raise OSError("no network in this test")
socket.socket.connect = socket.getaddrinfo = refuse
from pathlib import Path
from llamafarm.training.trackers.base import TrackedRun
from llamafarm.training.trackers.trackio import Trackio
tracker = Trackio()
tracker.check()
tracker.start(TrackedRun("asthma-run", "medical", {{"method.r": 16}}, Path({str(tracked.folder)!r})))
tracker.log(3, {{"train_loss": 2.5, "tokens": 7}})
tracker.log(5, {{"train_loss": 1.5}})
tracker.finish(succeeded=True)
assert not sent, sent
import os
assert os.environ["TRACKIO_SPACE_ID"] == "owner/space"
"""
    environment = {
        "PATH": "",
        "PYTHONPATH": ":".join(sys.path),
        "HOME": str(tmp_path / "home"),
        "TRACKIO_DIR": str(tmp_path / "place"),
        "TRACKIO_SPACE_ID": "owner/space",
        "TRACKIO_SERVER_URL": "https://example.com/?write_token=secret",
        "HF_TOKEN": "hf_" + "x" * 34,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "x" * 34 not in done.stderr
    assert rows_of(tmp_path / "place") == [(3, {"train_loss": 2.5, "tokens": 7}), (5, {"train_loss": 1.5})]
    (file,) = (tmp_path / "place").glob("*.db")
    with sqlite3.connect(file) as database:
        ((config,),) = database.execute("select config from configs")
    assert json.loads(config)["method.r"] == 16


class GrumblingRun:
    """A run of Trackio's that cannot write, as Trackio has it: it prints and warns."""

    def __init__(self, place: str) -> None:
        self.place = place

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        print("* Trackio has something to say")  # noqa: T201
        warnings.warn_explicit("the disk is full", UserWarning, self.place, 1)


def test_what_trackio_would_only_warn_of_is_raised_and_nothing_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracker = Trackio()
    tracker._run = GrumblingRun("/lib/trackio/utils.py")
    with pytest.raises(RuntimeError, match="the disk is full"):
        tracker.log(1, {"train_loss": 1.0})
    tracker._run = GrumblingRun("/lib/elsewhere/utils.py")
    tracker.log(1, {"train_loss": 1.0})
    assert capsys.readouterr().out == ""
