"""The rows that an export is verified on: those that the user names, else some that the run held out."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from llamafarm import terminal
from llamafarm.data.conversation import Conversation
from llamafarm.data.reading.records import DataReader, ReadOptions
from llamafarm.errors import DataError

_MOST_ROWS = 32
_RUN_FILE = "run.json"


def rows_to_verify_on(named: Path | None, model: Path) -> list[Conversation]:
    """Return the first rows of the file that is named, else of the one that the run of `model` evaluated on.

    Without either there are none: the model's own answers serve then. Raises `DataError` for a named file
    that cannot be read.
    """
    if named is not None:
        return list(islice(DataReader(named), _MOST_ROWS))
    found = _file_of_run(model)
    if found is None:
        return []
    try:
        return list(islice(DataReader(found, ReadOptions(skips_bad_rows=True)), _MOST_ROWS))
    except DataError as error:
        terminal.warn(f"the rows of the run cannot be read ({error.problem}): verified on fixed prompts")
        return []


def _file_of_run(model: Path) -> Path | None:
    """Return the last data file of the run that left a model, which is its evaluation's if it had one."""
    for folder in (model, model.parent):
        try:
            files = json.loads((folder / _RUN_FILE).read_text(encoding="utf-8"))["data"]
            path = Path(files[-1]["file"])
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            continue
        if path.exists():
            return path
    return None
