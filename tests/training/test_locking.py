"""One run a folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llamafarm.errors import OutputError
from llamafarm.training.locking import LOCK_FILE, RunLock, refuse_if_locked
from llamafarm.training.run import run_training
from llamafarm.training.session import Session

HOLD = (
    "import sys; from pathlib import Path; from llamafarm.training.locking import RunLock\n"
    "with RunLock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_another_process_is_kept_out_and_told_which_one_is_there(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as process:
        for enter in (lambda: RunLock(tmp_path).__enter__(), lambda: refuse_if_locked(tmp_path)):
            with pytest.raises(
                OutputError, match=f"another run, process {process.pid}, is training"
            ) as caught:
                enter()
            assert caught.value.where == str(tmp_path)


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    with held_by_another(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK_FILE).exists()
        refuse_if_locked(tmp_path)
        with RunLock(tmp_path):
            assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"


def test_it_leaves_no_file_and_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with RunLock(tmp_path):
            assert (tmp_path / LOCK_FILE).exists()
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_removed_meanwhile_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file, opened = RunLock._open, []

    def lose(self: RunLock) -> int:
        descriptor = open_file(self)
        opened.append(descriptor)
        if len(opened) == 1:  # whoever held it removes it before we have the lock
            (tmp_path / LOCK_FILE).unlink()
        return descriptor

    monkeypatch.setattr(RunLock, "_open", lose)
    with RunLock(tmp_path), pytest.raises(OutputError, match="another run"):
        RunLock(tmp_path).__enter__()
    assert len(opened) == 3


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_folder_that_is_gone_or_another_is_noticed(tmp_path: Path, is_replaced: bool) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with RunLock(folder) as lock:
        lock.check()
        folder.rename(tmp_path / "away")
        if is_replaced:
            folder.mkdir()
            (folder / LOCK_FILE).touch()
        with pytest.raises(OutputError, match="was removed while the run was going on"):
            lock.check()


def test_a_run_whose_folder_is_removed_ends_with_that_and_writes_no_more(
    load: Any, make_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = load(make_rows(40))
    folder = Path(strategy.strategy.training_args.output_dir)
    take_step = Session.take_step

    def lose(self: Session, step: int, rows: Any) -> Any:
        if step == 3:
            shutil.rmtree(folder)
        return take_step(self, step, rows)

    monkeypatch.setattr(Session, "take_step", lose)
    with pytest.raises(OutputError, match="was removed while the run was going on"):
        run_training(strategy)
    assert not folder.exists()


def test_a_folder_without_a_lock_is_left_alone(tmp_path: Path) -> None:
    refuse_if_locked(tmp_path)
    refuse_if_locked(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_hold_one_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be locked"):
        RunLock(tmp_path / "none").__enter__()
