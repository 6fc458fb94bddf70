"""Data files as conversations, one row after the other.

`reading` has the kinds of files, `formats` the forms of rows. Cleaning and splitting are in `corpus`,
rendering in `template`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from llamafarm.data.conversation import Conversation
from llamafarm.data.reading.bad_row import BadRowError, EmptyTurnError, Row
from llamafarm.data.reading.files import data_files, kind_suffix, read_bytes, read_rows
from llamafarm.data.reading.formats import (
    FORMATS,
    check_keys,
    check_turns,
    detect_format,
    read_tools,
    rename_columns,
)
from llamafarm.data.reading.json_rows import parse_row
from llamafarm.data.reading.streams import SeenBytes
from llamafarm.errors import DataError

_FORMAT_NAMED = {row_format.name: row_format for row_format in FORMATS}

if TYPE_CHECKING:
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
class FileReport:
    """What was read of a data file: how many rows of which form, what was left out, the hash of its bytes.

    `num_empty_rows` and `num_bad_rows` were left out, because they were asked to be; of the bad ones the
    first are in `bad_rows`.
    """

    path: Path
    format_name: str
    sha256: str
    num_rows: int
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


@dataclass(frozen=True, slots=True)
class DataFile(FileReport):
    """A data file that has been read into memory."""

    conversations: tuple[Conversation, ...] = ()


class RowParser:
    """Rows of files as conversations. Which form they have is told from the first, if no name says so."""

    def __init__(self, options: ReadOptions) -> None:
        self._columns = dict(options.columns)
        self.format_name = None if options.format_name == "auto" else options.format_name

    def parse(self, row_number: int, raw: str | Row | BadRowError) -> Conversation:
        """Return a row as a conversation. Raises `BadRowError` if it is none."""
        if isinstance(raw, BadRowError):
            raise raw
        row = parse_row(raw) if isinstance(raw, str) else raw
        if self._columns:
            row = rename_columns(row, self._columns)
        if self.format_name is None:
            self.format_name = detect_format(row).name
        row_format = _FORMAT_NAMED[self.format_name]
        check_keys(row, row_format)
        messages = row_format.read_messages(row)
        check_turns(messages)
        return Conversation(messages, row_number, read_tools(row))


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
        self._seen = SeenBytes()

    def num_bytes(self) -> int:
        """Return how large the files are."""
        return sum(file.stat().st_size for file in data_files(self.path))

    @property
    def num_bytes_read(self) -> int:
        """Return how far reading has come."""
        return self._seen.num_bytes

    def hash_files(self) -> str:
        """Return what `sha256` will be, without parsing anything. Raises `DataError`."""
        seen = SeenBytes()
        for file in data_files(self.path):
            read_bytes(file, seen)
        return seen.sha256.hexdigest()

    def describe_files(self) -> list[tuple[str, int]]:
        """Return each file's kind, by its name, and its size: with `sha256`, what reading follows from."""
        return [(kind_suffix(file), file.stat().st_size) for file in data_files(self.path)]

    def __iter__(self) -> Iterator[Conversation]:
        """Read from the beginning."""
        parser = RowParser(self.options)
        for file, row_number, raw in self.iterate_raw():
            try:
                conversation = parser.parse(row_number, raw)
            except BadRowError as bad:
                self.leave_out(bad, file, row_number)
                continue
            self.num_rows += 1
            yield conversation
        self.finish(parser)

    def iterate_raw(self) -> Iterator[tuple[Path, int, str | Row | BadRowError]]:
        """Yield file, number and row, not parsed yet; whoever parses them counts and calls `finish`."""
        self.num_rows = self.num_empty_rows = self.num_bad_rows = 0
        self.bad_rows = []
        self._seen = SeenBytes()
        for file in data_files(self.path):
            for row_number, raw in read_rows(file, self._seen):
                yield file, row_number, raw
        self.sha256 = self._seen.sha256.hexdigest()

    def finish(self, parser: RowParser) -> None:
        """Take over the form that was found. Raises `DataError` if there was no row."""
        if not self.num_rows or parser.format_name is None:
            raise self._without_rows()
        self.format_name = parser.format_name

    def report(self) -> FileReport:
        """Return what was read."""
        return FileReport(
            self.path,
            self.format_name,
            self.sha256,
            self.num_rows,
            self.num_empty_rows,
            self.num_bad_rows,
            tuple(self.bad_rows),
        )

    def leave_out(self, bad: BadRowError, file: Path, row_number: int) -> None:
        """Count a row that may be left out. Raises `DataError` if it may not."""
        where = f"{file}:{row_number}"
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
    report = reader.report()
    known = {each.name: getattr(report, each.name) for each in fields(report)}
    return DataFile(**known, conversations=conversations)
