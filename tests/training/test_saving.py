"""Checkpoints are written beside the steps; what goes wrong there is told."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llamafarm.errors import OutputError
from llamafarm.training.checkpoint import Snapshot, checkpoints_in
from llamafarm.training.saving import Saver


def write_nothing(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def snapshot_of(
    step: int, write: Callable[[Path], None] = write_nothing, *, best_step: int = 0, num_numbers: int = 3
) -> Snapshot:
    tensors = {"moment": torch.ones(num_numbers)}
    return Snapshot(step, write, tensors, {"loop": {"best_step": best_step}})


def steps_in(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints_in(folder)]


def test_the_next_step_does_not_wait_and_the_next_save_does(tmp_path: Path) -> None:
    may_write, order = threading.Event(), list[str]()

    def slowly(folder: Path) -> None:
        may_write.wait(30)
        order.append("first")
        write_nothing(folder)

    def next_one(folder: Path) -> None:
        order.append("second")
        write_nothing(folder)

    saver = Saver(tmp_path, keep=2)
    saver.save(snapshot_of(1, slowly), best_step=0, in_background=True)
    order.append("a step")
    assert steps_in(tmp_path) == []
    may_write.set()
    saver.save(snapshot_of(2, next_one), best_step=0, in_background=True)
    saver.wait()
    assert order == ["a step", "first", "second"]
    assert steps_in(tmp_path) == [2, 1]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError(errno.EIO, "Input/output error"),
        ValueError("odd"),
    ],
)
def test_what_goes_wrong_in_the_background_is_raised_once_by_the_next_step(
    tmp_path: Path, error: Exception
) -> None:
    def fail(_: Path) -> None:
        raise error

    saver = Saver(tmp_path, keep=2)
    saver.save(snapshot_of(1, fail), best_step=0, in_background=True)
    assert saver._thread is not None
    saver._thread.join()
    with pytest.raises(OutputError, match="the checkpoint cannot be written"):
        saver.wait()
    saver.wait()
    saver.save(snapshot_of(2), best_step=0, in_background=False)
    assert steps_in(tmp_path) == [2]


def test_without_a_background_it_is_raised_at_once(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        Saver(tmp_path, keep=2).save(snapshot_of(1, fail), best_step=0, in_background=False)


def test_a_snapshot_that_has_no_room_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = Saver(tmp_path / "checkpoints", keep=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(OutputError, match=r"a checkpoint takes 4\.2 MiB, and 1\.0 MiB are free"):
        saver.save(snapshot_of(1, num_numbers=2**20), best_step=0, in_background=True)
    assert not (tmp_path / "checkpoints").exists()
    saver.save(snapshot_of(2), best_step=0, in_background=False)
    assert steps_in(tmp_path / "checkpoints") == [2]


def test_a_disk_that_does_not_say_how_full_it_is_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    Saver(tmp_path, keep=2).save(snapshot_of(1), best_step=0, in_background=False)
    assert steps_in(tmp_path) == [1]


def test_the_best_of_when_the_oldest_kept_was_written_stays_too(tmp_path: Path) -> None:
    saver = Saver(tmp_path, keep=2)
    for step, best_step in ((2, 2), (4, 2), (6, 2), (8, 8)):
        saver.save(snapshot_of(step, best_step=best_step), best_step=best_step, in_background=False)
    # Whoever finds step 8 damaged goes back to 6, and would lack its best.
    assert steps_in(tmp_path) == [8, 6, 2]
    saver.save(snapshot_of(10, best_step=8), best_step=8, in_background=False)
    assert steps_in(tmp_path) == [10, 8]
