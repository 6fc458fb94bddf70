"""What a run leaves to read: `metrics.jsonl`, `run.json`, TensorBoard's `logs/`; and their folder."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamafarm.errors import OutputError

METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"
CHECKPOINTS_FOLDER = "checkpoints"
FINAL_MODEL_FOLDER = "final_model"
LOGS_FOLDER = "logs"
_OURS = (METRICS_FILE, RUN_FILE, CHECKPOINTS_FOLDER, FINAL_MODEL_FOLDER, LOGS_FOLDER)


def check_output_dir(folder: Path, *, overwrite: bool) -> None:
    """Raise `OutputError` if `folder` is no folder, or holds an earlier run that may not be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(
            "the output folder is a file",
            where=str(folder),
            remedy="Choose another training_args.output_dir.",
        )
    taken = [name for name in _OURS if (folder / name).exists()]
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
    """Appends to `metrics.jsonl`, a line at a time, and to TensorBoard's logs where they are wanted."""

    def __init__(self, folder: Path, *, writes_metrics: bool, writes_tensorboard: bool) -> None:
        self._file = (folder / METRICS_FILE).open("a", encoding="utf-8") if writes_metrics else None
        self._board: Any = None
        if writes_tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / LOGS_FOLDER))

    def write(self, metrics: Mapping[str, float | int | None]) -> None:
        """Write one line. Values that are not finite become null: JSON has no word for them."""
        if self._file is not None:
            line = {name: _finite_or_none(value) for name, value in metrics.items()}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, metrics["step"])

    def close(self) -> None:
        """Close the files."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece: it is whole, or as it was before."""
    unfinished = path.with_name(path.name + ".unfinished")
    text = json.dumps(_finite_only(record), indent=2, ensure_ascii=False, allow_nan=False)
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _finite_only(value: Any) -> Any:
    """Return a record with null for every number that is not finite: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {key: _finite_only(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_only(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite_or_none(value: float | int | None) -> float | int | None:
    return value if value is None or math.isfinite(value) else None
