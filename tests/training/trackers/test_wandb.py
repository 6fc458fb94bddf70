"""Weights & Biases' offline runs, read back from their folder; who has a key, without the library."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamafarm.errors import MachineError
from llamafarm.training.trackers import wandb as ours
from llamafarm.training.trackers.base import TrackedRun
from llamafarm.training.trackers.wandb import WeightsAndBiases, has_key

# LevelDB's log format, after seven bytes of wandb's own: in blocks of 32 KiB, pieces of records with a sum,
# a length and a kind, which says whether a record ends with them.
BLOCK_BYTES = 32768
HEADER = struct.Struct("<IHB")
WHOLE, LAST = 1, 4


def read_run(file: Path) -> list[Any]:
    """Return the records of an offline run."""
    from wandb.proto import wandb_internal_pb2

    content = file.read_bytes()
    assert content[:4] == b":W&B"
    records, pieces, place = [], b"", 7
    while place < len(content):
        if BLOCK_BYTES - place % BLOCK_BYTES < HEADER.size:
            place += BLOCK_BYTES - place % BLOCK_BYTES
        _, length, kind = HEADER.unpack_from(content, place)
        place += HEADER.size
        pieces += content[place : place + length]
        place += length
        if kind in (WHOLE, LAST):
            records.append(wandb_internal_pb2.Record.FromString(pieces))
            pieces = b""
    return records


def read_ended_run(file: Path) -> list[Any]:
    """Return the records of a run once its end is among them: a process of wandb's own writes them."""
    deadline = time.monotonic() + 20
    while True:
        records = read_run(file)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < deadline, "the run's end was never written"
        time.sleep(0.05)


@pytest.mark.parametrize(("succeeded", "exit_code"), [(True, 0), (False, 1)])
def test_without_a_key_a_run_stays_here_and_is_whole(
    tracked: TrackedRun,
    sent: list[object],
    capfd: pytest.CaptureFixture[str],
    succeeded: bool,
    exit_code: int,
) -> None:
    pytest.importorskip("wandb.sdk")
    tracker = WeightsAndBiases()
    tracker.check()
    tracker.start(tracked)
    tracker.log(3, {"train_loss": 2.5, "tokens": 7})
    tracker.log(5, {"train_loss": 1.5})
    tracker.finish(succeeded=succeeded)

    assert sent == []
    assert tuple(capfd.readouterr()) == ("", "")
    (file,) = (tracked.folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert not (Path.cwd() / "wandb").exists()
    records = read_ended_run(file)
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name) == ("medical", "asthma-run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["method.r"] == 16
    lines = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [(line["_step"], line["train_loss"]) for line in lines] == [(3, 2.5), (5, 1.5)]
    (exit_record,) = (record.exit for record in records if record.WhichOneof("record_type") == "exit")
    assert exit_record.exit_code == exit_code


class FakeRun:
    def log(self, metrics: dict[str, float], *, step: int) -> None:
        pass

    def finish(self, *, exit_code: int) -> None:
        pass


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k" * 40}, None),
        ({"WANDB_MODE": "shared"}, None),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k" * 40}, None),
    ],
)
def test_the_mode_is_offline_unless_a_key_or_the_environment_decides(
    tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], mode: str | None
) -> None:
    asked: dict[str, Any] = {}

    def init(**options: Any) -> FakeRun:
        asked.update(options)
        return FakeRun()

    library = SimpleNamespace(init=init, Settings=lambda **options: options)
    monkeypatch.setattr(ours, "_load", lambda: library)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    WeightsAndBiases().start(tracked)
    assert asked["mode"] == mode
    assert asked["settings"]["silent"] and asked["settings"]["finish_timeout"] > 0
    assert "k" * 40 not in str(asked)


@pytest.mark.parametrize(
    ("netrc", "address", "expected"),
    [
        ("machine api.wandb.ai login user password secret", None, True),
        ("machine wandb.example.com login user password secret", "https://wandb.example.com", True),
        ("machine api.wandb.ai login user password secret", "https://wandb.example.com", False),
        ("default login user password secret", None, False),
        ("machine github.com login user password secret", None, False),
        ("nonsense", None, False),
        (None, None, False),
    ],
)
def test_a_key_may_stand_in_the_netrc_file(
    monkeypatch: pytest.MonkeyPatch, netrc: str | None, address: str | None, expected: bool
) -> None:
    if netrc is not None:
        file = Path.home() / ".netrc"
        file.write_text(netrc)
        file.chmod(0o600)
    if address is not None:
        monkeypatch.setenv("WANDB_BASE_URL", address)
    assert has_key() == expected


def test_online_without_a_key_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_load", lambda: None)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(MachineError, match="no API key") as caught:
        WeightsAndBiases().check()
    assert "wandb login" in caught.value.remedy
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    WeightsAndBiases().check()
