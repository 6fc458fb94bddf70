"""What a run leaves to read: `metrics.jsonl` and `run.json`; and their folder. `trackers/` has the rest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llamafarm.confined import confined
from llamafarm.errors import OutputError
from llamafarm.strict_json import to_json

METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"
CHECKPOINTS_FOLDER = "checkpoints"
FINAL_MODEL_FOLDER = "final_model"
LOGS_FOLDER = "logs"
# What `evaluation` and `report` write beside them, by their names for it.
_OF_OTHERS = ("evaluation.json", "report.html")
_OURS = (METRICS_FILE, RUN_FILE, CHECKPOINTS_FOLDER, FINAL_MODEL_FOLDER, LOGS_FOLDER, *_OF_OTHERS)
# What is in them is removed and replaced: it has to be the run's own.
_FOLDERS = (CHECKPOINTS_FOLDER, FINAL_MODEL_FOLDER, f"{FINAL_MODEL_FOLDER}.unfinished", LOGS_FOLDER)


def earlier_run_in(folder: Path) -> list[str]:
    """Return the names of what an earlier run left in `folder`."""
    return [name for name in _OURS if (folder / name).exists()]


def refuse_links(folder: Path) -> None:
    """Raise `OutputError` if a folder that a run keeps in `folder` is a link, wherever that leads.

    Old checkpoints would be removed in its target, and the final model could not take its place.
    """
    for path in (folder / name for name in _FOLDERS):
        if path.is_symlink():
            raise OutputError(
                f"{str(path)!r} is a link to {str(path.readlink())!r}, and a run removes and replaces what is"
                " in it",
                where=str(folder),
                remedy="Remove the link; to train onto another disk, name a folder there in "
                "training_args.output_dir.",
            )


def check_output_dir(folder: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` if `folder` is no folder, or holds an earlier run that may not be overwritten.

    So does a link in the place of one of a run's folders.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(
            "the output folder is a file",
            where=str(folder),
            remedy="Choose another training_args.output_dir.",
        )
    refuse_links(folder)
    taken = earlier_run_in(folder)
    if taken and not overwrite:
        raise OutputError(
            f"the output folder holds an earlier run ({', '.join(taken)})",
            where=str(folder),
            remedy="Pass --overwrite to replace it, or --output-dir to keep it.",
        )
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(
            "the output folder cannot be written to",
            where=str(existing),
            remedy="Choose another training_args.output_dir.",
        )


def make_output_dir(folder: Path) -> None:
    """Have `folder` there. Raises `OutputError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_ready(folder, error) from error


def clear_output_dir(folder: Path, *, overwrite: bool) -> None:
    """Remove what an earlier run left in `folder`. Other files stay.

    Raises `OutputError` as `check_output_dir` does.
    """
    check_output_dir(folder, overwrite=overwrite)
    try:
        # run.json first: without it nobody takes what is left, after a kill, for a run to go on with.
        for name in (RUN_FILE, *_OURS):
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise _not_ready(folder, error) from error


def _not_ready(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the output folder cannot be made ready: {error.strerror}",
        where=str(folder),
        remedy="Choose another training_args.output_dir.",
    )


class MetricsWriter:
    """Appends to `metrics.jsonl`, a line at a time; writes nothing where that is not wanted."""

    def __init__(self, folder: Path, *, writes_metrics: bool) -> None:
        self._path = confined(folder, METRICS_FILE)
        self._file = self._path.open("a", encoding="utf-8", newline="\n") if writes_metrics else None

    def write(self, metrics: Mapping[str, float | int | None]) -> None:
        """Write one line. Values that are not finite become null. Raises `OutputError`."""
        if self._file is not None:
            with _writing(self._path):
                self._file.write(to_json(metrics) + "\n")
                self._file.flush()

    def sync(self) -> int | None:
        """Have all lines on the disk, and return how many bytes they are; None where none are written.

        Raises `OutputError`.
        """
        if self._file is None:
            return None
        with _writing(self._path):
            os.fsync(self._file.fileno())
            return self._file.tell()

    def cut_to(self, num_bytes: int | None) -> list[dict[str, Any]]:
        """Cut off what was written after so many bytes, and return the lines before; none without a file.

        Raises `ValueError` if the file is shorter than that, or its lines are not what was written.
        """
        if self._file is None or num_bytes is None:
            return []
        content = self._path.read_bytes()
        if len(content) < num_bytes:
            raise ValueError(f"{METRICS_FILE} is shorter than it was when the checkpoint was written")
        self._file.truncate(num_bytes)
        self._file.seek(0, os.SEEK_END)
        return [json.loads(line) for line in content[:num_bytes].decode("utf-8").splitlines()]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            # What a full disk did not take is not asked for again.
            with suppress(OSError):
                self._file.close()


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece: it is whole, or as it was before. Raises `OutputError`."""
    text = to_json(record, indent=2) + "\n"
    unfinished = path.with_name(path.name + ".unfinished")
    with _writing(path):
        unfinished.unlink(missing_ok=True)  # a link there would be written through
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path.name} cannot be written: {error.strerror or error}",
            where=str(path),
            remedy="Make room on the disk, then run the same command again: it goes on from what is saved.",
        ) from error
