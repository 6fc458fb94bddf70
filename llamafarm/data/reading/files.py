"""Which reader a data file gets: by its first bytes where these tell, else by its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llamafarm.data.reading.bad_row import BadRowError, RawRow
from llamafarm.data.reading.json_rows import read_json_rows, read_json_texts, write_row
from llamafarm.data.reading.streams import DAMAGED, PACKED_SUFFIXES, SeenBytes, finish, open_stream
from llamafarm.data.reading.tables import read_csv_rows, read_parquet_rows
from llamafarm.errors import DataError

_PARQUET_MAGIC = b"PAR1"
_BLOCK_BYTES = 2**20
_TABLE_SUFFIXES = (".csv", ".tsv")
DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", *_TABLE_SUFFIXES)


def data_files(path: Path) -> list[Path]:
    """Return the file, or the data files of a folder in the order of their names.

    Raises `DataError` for what is neither, and for a folder without a data file.
    """
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.is_file() and _is_data_file(file))
        if not found:
            raise DataError(
                f"the folder {path.name!r} holds no data file",
                where=str(path),
                remedy=f"Name a file, or a folder with files that end in {', '.join(DATA_SUFFIXES)}.",
            )
        return found
    if not path.exists():
        raise DataError(
            f"there is no file {path.name!r}", where=str(path), remedy="Check the path, or make the file."
        )
    if not path.is_file():  # a FIFO would wait for ever
        raise DataError(f"{path.name!r} is not a file", where=str(path), remedy="Name a data file.")
    return [path]


def read_bytes(path: Path, seen: SeenBytes) -> None:
    """Read a file as it lies on the disk. Raises `DataError`."""
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK_BYTES):
                seen.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error


def read_rows(path: Path, seen: SeenBytes) -> Iterator[RawRow]:
    """Yield the rows of one file, and what is wrong with those that are none; `seen` gets the file's bytes.

    Rows of a file of lines come as they stand there. Raises `DataError` where the file as a whole cannot be
    read.
    """
    try:
        with open_stream(path, seen) as stream:
            if stream.peek(4).startswith(_PARQUET_MAGIC):
                yield from read_parquet_rows(path)
            elif kind_suffix(path) in _TABLE_SUFFIXES:
                yield from read_csv_rows(stream)
            else:
                yield from read_json_rows(stream)
            finish(stream)
    except OSError as error:
        raise _unreadable(path, error) from error
    except DAMAGED as error:
        raise DataError(
            f"the compressed file is damaged: {error}", where=str(path), remedy="Copy or pack it again."
        ) from error
    except BadRowError as bad:
        raise DataError(bad.problem, where=str(path), remedy=bad.remedy) from None


def read_row_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every row of a file as a line of JSON, with its number; of a file of such lines, as it stands.

    For files that `read_rows` read without an error.
    """
    with open_stream(path, SeenBytes()) as stream:
        if not (stream.peek(4).startswith(_PARQUET_MAGIC) or kind_suffix(path) in _TABLE_SUFFIXES):
            yield from read_json_texts(stream)
            return
    for row_number, row in read_rows(path, SeenBytes()):
        if not isinstance(row, str | BadRowError):
            yield row_number, write_row(row)


def stem_of(path: Path) -> str:
    """Return a data file's name without what says its kind and how it is packed: `a.b` of `a.b.csv.gz`."""
    packed = path.with_suffix("") if path.suffix.lower() in PACKED_SUFFIXES else path
    return packed.stem if packed.suffix.lower() in DATA_SUFFIXES else packed.name


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"the file cannot be read: {error.strerror or error}",
        where=str(path),
        remedy="Check the file and its permissions.",
    )


def _is_data_file(path: Path) -> bool:
    return not path.name.startswith(".") and kind_suffix(path) in DATA_SUFFIXES


def kind_suffix(path: Path) -> str:
    """Return what a file's name says of its kind, such as `.csv` of `a.csv.gz`; empty if it says nothing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
