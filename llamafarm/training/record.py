"""What a run leaves to read: `metrics.jsonl` and `run.json`; and their folder. `trackers/` has the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafarm.errors import OutputError
from llamafarm.strict_json import to_json

METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"
CHECKPOINTS_FOLDER = "checkpoints"
FINAL_MODEL_FOLDER = "final_model"
LOGS_FOLDER = "logs"
_OURS = (METRICS_FILE, RUN_FILE, CHECKPOINTS_FOLDER, FINAL_MODEL_FOLDER, LOGS_FOLDER)


def earlier_run_in(folder: Path) -> list[str]:
    """Return the names of what an earlier run left in `folder`."""
    return [name for name in _OURS if (folder / name).exists()]


def check_output_dir(folder: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` if `folder` is no folder, or holds an earlier run that may not be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(
            "the output folder is a file",
            where=str(folder),
            remedy="Choose another training_args.output_dir.",
        )
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


def claim_output_dir(folder: Path, *, overwrite: bool) -> None:
    """Make `folder` ready for a run: there, and without an earlier run's files. Other files stay.

    Raises `OutputError` as `check_output_dir` does.
    """
    check_output_dir(folder, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _OURS:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"the output folder cannot be made ready: {error.strerror}",
            where=str(folder),
            remedy="Choose another training_args.output_dir.",
        ) from error


class MetricsWriter:
    """Appends to `metrics.jsonl`, a line at a time; writes nothing where that is not wanted."""

    def __init__(self, folder: Path, *, writes_metrics: bool) -> None:
        self._file = (folder / METRICS_FILE).open("a", encoding="utf-8") if writes_metrics else None

    def write(self, metrics: Mapping[str, float | int | None]) -> None:
        """Write one line. Values that are not finite become null."""
        if self._file is not None:
            self._file.write(to_json(metrics) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece: it is whole, or as it was before."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(to_json(record, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
