"""The output folder of a run, and what is written into it to be read."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from llamafarm.errors import OutputError
from llamafarm.training.record import (
    MetricsWriter,
    check_output_dir,
    clear_output_dir,
    make_output_dir,
    write_json,
)

OURS = [
    "checkpoints/step-00000001/state.json",
    "final_model/llamafarm.json",
    "logs/x",
    "metrics.jsonl",
    "run.json",
]


def write(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")


def test_a_folder_that_is_not_there_yet_is_fine_and_checking_makes_nothing(tmp_path: Path) -> None:
    check_output_dir(tmp_path / "a" / "b", overwrite=False)
    assert not (tmp_path / "a").exists()
    make_output_dir(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_with_other_files_is_fine_and_keeps_them(tmp_path: Path) -> None:
    write(tmp_path, "notes.txt")
    clear_output_dir(tmp_path, overwrite=False)
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("name", OURS)
def test_a_folder_with_an_earlier_run_is_refused_untouched(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    with pytest.raises(OutputError, match=name.partition("/")[0]) as caught:
        clear_output_dir(tmp_path, overwrite=False)
    assert caught.value.where == str(tmp_path)
    assert "--overwrite" in caught.value.remedy
    assert (tmp_path / name).exists()


def test_overwriting_removes_an_earlier_run_and_nothing_else(tmp_path: Path) -> None:
    for name in (*OURS, "notes.txt", "data/train.jsonl"):
        write(tmp_path, name)
    clear_output_dir(tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "notes.txt"]
    assert (tmp_path / "data" / "train.jsonl").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_folders_place_is_refused(tmp_path: Path, overwrite: bool) -> None:
    write(tmp_path, "run")
    with pytest.raises(OutputError, match="is a file"):
        check_output_dir(tmp_path / "run", overwrite=overwrite)
    assert (tmp_path / "run").read_text() == "{}"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_found_before_training(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot be written to"):
            check_output_dir(tmp_path / "run", overwrite=False)
    finally:
        tmp_path.chmod(0o700)


def test_metrics_are_one_object_a_line_readable_while_the_run_goes_on(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, writes_metrics=True)
    writer.write({"step": 1, "train_loss": 2.5, "eval_loss": None})
    writer.write({"step": 2, "train_loss": math.nan, "eval_loss": math.inf})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    writer.close()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "train_loss": 2.5, "eval_loss": None},
        {"step": 2, "train_loss": None, "eval_loss": None},
    ]


def test_metrics_that_are_not_wanted_are_not_written(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, writes_metrics=False)
    writer.write({"step": 3, "train_loss": 2.5})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_json_file_that_cannot_be_made_leaves_the_one_before(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"steps": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "run.json", {"steps": object()})
    assert json.loads((tmp_path / "run.json").read_text()) == {"steps": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_full_disk_is_an_error_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_json(tmp_path / "run.json", {"steps": 1})
    writer = MetricsWriter(tmp_path, writes_metrics=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        for write in (writer.sync, lambda: write_json(tmp_path / "run.json", {"steps": 2})):
            with pytest.raises(OutputError, match="No space left on device"):
                write()
    writer.close()
    assert json.loads((tmp_path / "run.json").read_text()) == {"steps": 1}


def test_a_folder_that_was_half_cleared_is_no_run_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("metrics.jsonl", "run.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    unlink = Path.unlink

    def die(self: Path, *, missing_ok: bool = False) -> None:
        unlink(self, missing_ok=missing_ok)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            clear_output_dir(tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "metrics.jsonl"]
