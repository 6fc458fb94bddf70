"""Data files as conversations, one row after the other.

`reading` has the kinds of files, `formats` the forms of rows. Cleaning and splitting are in `corpus`,
rendering in `template`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llamafarm.data.conversation import Conversation
from llamafarm.data.reading.bad_row import BadRowError, EmptyTurnError, Row
from llamafarm.data.reading.files import data_files, read_rows
from llamafarm.data.reading.formats import (
    FORMATS,
    RowFormat,
    check_keys,
    check_turns,
    detect_format,
    read_tools,
    rename_columns,
)
from llamafarm.errors import DataError
from llamafarm.strategy.sections.data import DataPreprocessing, Dataset

# Bad rows beyond these are counted, not listed.
_MOST_BAD_ROWS_LISTED = 20


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How data files are read.

    `format_name` is one of `FORMATS`, or `auto`; `columns` maps the names that forms know to the file's own.
    Rows with an empty turn are left out with `filter_empty`, all that cannot be read with `skips_bad_rows`.
    """

    format_name: str = "auto"
    filter_empty: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    skips_bad_rows: bool = False

    @classmethod
    def of(cls, dataset: Dataset, preprocessing: DataPreprocessing) -> ReadOptions:
        """Return how a strategy wants its files read."""
        columns = {name: column for name, column in dataset.columns if column is not None}
        return cls(dataset.format, preprocessing.filter_empty, columns, dataset.on_bad_row == "skip")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out: where it stands, as file and line, and what is wrong with it."""

    where: str
    problem: str


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file that has been read: its rows, the name of their form, and the hash of its bytes.

    `num_empty_rows` and `num_bad_rows` were left out, because they were asked to be; of the bad ones the
    first are in `bad_rows`.
    """

    path: Path
    format_name: str
    conversations: tuple[Conversation, ...]
    sha256: str
    num_empty_rows: int = 0
    num_bad_rows: int = 0
    bad_rows: tuple[BadRow, ...] = ()

    def warnings(self) -> list[str]:
        """Return what was left out of the file, as sentences."""
        said = []
        if self.num_empty_rows:
            said.append(f"{self.num_empty_rows} rows of {self.path} have an empty turn and are left out")
        if self.num_bad_rows:
            first = "; ".join(f"{bad.where}: {bad.problem}" for bad in self.bad_rows[:3])
            said.append(
                f"{self.num_bad_rows} rows of {self.path} cannot be read and are left out "
                f"(dataset.on_bad_row): {first}"
            )
        return said


class DataReader:
    """The conversations of a data file, or of all data files in a folder: iterating it reads them.

    Raises `DataError`, with file and line, for a file that cannot be read, and for a row that is not of the
    form or has an empty turn. `format_name` and `sha256` (of the files' bytes) are known once everything has
    been read to its end, the counts as far as it has been.
    """

    def __init__(self, path: Path, options: ReadOptions | None = None) -> None:
        self.path = path
        self.options = options or ReadOptions()
        self.format_name = self.options.format_name
        self.sha256 = ""
        self.num_rows = 0
        self.num_empty_rows = 0
        self.num_bad_rows = 0
        self.bad_rows: list[BadRow] = []

    def __iter__(self) -> Iterator[Conversation]:
        """Read from the beginning."""
        self.num_rows = self.num_empty_rows = self.num_bad_rows = 0
        self.bad_rows = []
        row_format = next((known for known in FORMATS if known.name == self.options.format_name), None)
        hasher = hashlib.sha256()
        for file in data_files(self.path):
            for row_number, row in read_rows(file, hasher):
                try:
                    if isinstance(row, BadRowError):
                        raise row
                    if self.options.columns:
                        row = rename_columns(row, self.options.columns)
                    row_format = row_format or detect_format(row)
                    conversation = _read_row(row, row_number, row_format)
                except BadRowError as bad:
                    self._leave_out(bad, f"{file}:{row_number}")
                    continue
                self.num_rows += 1
                yield conversation
        if not self.num_rows or row_format is None:
            raise self._without_rows()
        self.format_name, self.sha256 = row_format.name, hasher.hexdigest()

    def _leave_out(self, bad: BadRowError, where: str) -> None:
        """Count a row that may be left out. Raises `DataError` if it may not."""
        if self.options.filter_empty and isinstance(bad, EmptyTurnError):
            self.num_empty_rows += 1
        elif self.options.skips_bad_rows:
            self.num_bad_rows += 1
            if len(self.bad_rows) < _MOST_BAD_ROWS_LISTED:
                self.bad_rows.append(BadRow(where, bad.problem))
        else:
            raise DataError(bad.problem, where=where, remedy=bad.remedy) from None

    def _without_rows(self) -> DataError:
        if self.bad_rows:
            first = self.bad_rows[0]
            return DataError(
                f"none of the file's {self.num_bad_rows} rows can be read; of the first: {first.problem}",
                where=first.where,
                remedy="Mend the rows; dataset.on_bad_row: skip is for a few.",
            )
        return DataError(
            "the file has no rows",
            where=str(self.path),
            remedy="Give a JSONL file with one example on each line.",
        )


def read_data_file(path: Path, options: ReadOptions | None = None) -> DataFile:
    """Read every row of a data file, as `DataReader` does and with its errors, into memory."""
    reader = DataReader(path, options)
    conversations = tuple(reader)
    return DataFile(
        path,
        reader.format_name,
        conversations,
        reader.sha256,
        reader.num_empty_rows,
        reader.num_bad_rows,
        tuple(reader.bad_rows),
    )


def _read_row(row: Row, row_number: int, row_format: RowFormat) -> Conversation:
    check_keys(row, row_format)
    messages = row_format.read_messages(row)
    check_turns(messages)
    return Conversation(messages, row_number, read_tools(row))
