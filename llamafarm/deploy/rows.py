"""The rows that an export is verified and weighed on: the user's, else some that the run has seen."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from llamafarm import terminal
from llamafarm.data.conversation import Conversation
from llamafarm.data.reading.records import DataReader, ReadOptions
from llamafarm.errors import DataError

_MOST_VERIFIED, _MOST_WEIGHED = 32, 512
_RUN_FILE = "run.json"


_AS_THEY_ARE = ReadOptions(skips_bad_rows=True)


def rows_to_verify_on(
    named: Path | None, model: Path, reading: ReadOptions = _AS_THEY_ARE
) -> list[Conversation]:
    """Return the first rows of the file that is named, else of the one that the run of `model` evaluated on.

    The run's are read as `reading` says. Without either there are none: the model's own answers serve then.
    Raises `DataError` for a named file that cannot be read.
    """
    return _read(named, model, reading, _MOST_VERIFIED, is_last=True)


def rows_to_weigh_on(
    named: Path | None, model: Path, reading: ReadOptions = _AS_THEY_ARE
) -> list[Conversation]:
    """Return the first rows of the file that is named, else of those that the run of `model` trained on.

    Raises `DataError` for a named file that cannot be read.
    """
    return _read(named, model, reading, _MOST_WEIGHED, is_last=False)


def _read(
    named: Path | None, model: Path, reading: ReadOptions, num_rows: int, *, is_last: bool
) -> list[Conversation]:
    if named is not None:
        return list(islice(DataReader(named), num_rows))
    found = _file_of_run(model, is_last=is_last)
    if found is None:
        return []
    try:
        return list(islice(DataReader(found, reading), num_rows))
    except DataError as error:
        terminal.warn(f"the rows of the run cannot be read: {error.problem}")
        return []


def _file_of_run(model: Path, *, is_last: bool) -> Path | None:
    """Return a run's first data file, or its last, which is its evaluation's if it had one."""
    for folder in (model, model.parent):
        if not (folder / _RUN_FILE).is_file():
            continue
        try:
            files = json.loads((folder / _RUN_FILE).read_text(encoding="utf-8"))["data"]
            path = Path(files[-1 if is_last else 0]["file"])
            is_there = path.exists()
        except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
            continue
        if is_there:
            return path
        terminal.warn(f"the run's rows are not here ({path}): name them with --verify-dataset")
        return None
    return None
