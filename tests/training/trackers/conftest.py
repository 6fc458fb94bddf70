"""A run to be tracked, and a machine on which nobody is logged in and nothing may be sent."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from llamafarm.training.trackers.base import TrackedRun

VARIABLES = (
    "WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_DIR", "NETRC",
    "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME",
    "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL",
)  # fmt: skip
SETTINGS = {"method.r": 16, "training_args.learning_rate": 2e-4, "dataset.train_file": None}


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away logins, variables and the home folder."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuse every connection to a network and return their list; a process' own sockets stay."""
    addresses: list[object] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family == getattr(socket, "AF_UNIX", None) or address[0] in ("127.0.0.1", "localhost"):
            connect(self, address)
            return
        addresses.append(address)
        raise OSError("no network in this test")

    def refuse_name(host: Any, *rest: Any, **options: Any) -> Any:
        if host in ("127.0.0.1", "localhost", None):
            return look_up(host, *rest, **options)
        addresses.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_name)
    return addresses


@pytest.fixture
def tracked(tmp_path: Path) -> TrackedRun:
    return TrackedRun("asthma-run", "medical", SETTINGS, tmp_path / "run" / "logs")
