"""Rows in tables: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llamafarm.data.reading.bad_row import BadRowError, NumberedRow, shorten
from llamafarm.data.reading.streams import iterate_text_lines

_MOST_CHARACTERS_OF_A_FIELD = 64 * 2**20
_ROWS_AT_ONCE = 1024


def read_csv_rows(stream: io.BufferedReader) -> Iterator[NumberedRow]:
    """Yield the rows below the header. Raises `BadRowError` where the header or the quoting is broken."""
    csv.field_size_limit(_MOST_CHARACTERS_OF_A_FIELD)
    lines = _lines_or_raise(stream)
    header_line = next(lines, "")
    delimiter = max(",;\t", key=header_line.count)
    try:
        names = [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter), [])]
    except csv.Error as error:
        raise BadRowError(f"the header cannot be read: {error}", "Mend the first line.") from None
    if not all(names) or len(set(names)) < len(names):
        raise BadRowError(
            f"the header has a column without a name, or one twice: {shorten(header_line.strip())}",
            "Give each column a name of its own.",
        )
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        row_number = reader.line_num + 2  # below the header, from 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"line {row_number}: the table cannot be read: {error}"
            raise BadRowError(problem, "Mend the quotes.") from None
        if len(cells) == len(names):
            yield row_number, dict(zip(names, cells, strict=True))
        elif cells:
            shown = shorten(delimiter.join(cells))
            fault = f"the row has {len(cells)} cells and the header {len(names)}: {shown}"
            yield row_number, BadRowError(fault, "Quote the cells that hold the separator.")


def read_parquet_rows(path: Path) -> Iterator[NumberedRow]:
    """Yield the rows of a Parquet file, numbered from 1; nested columns are lists and mappings."""
    import pyarrow
    import pyarrow.parquet

    row_number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                rows: list[dict[str, Any]] = batch.to_pylist()
                for row in rows:
                    row_number += 1
                    yield row_number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # Thrift's are OSErrors
        reason = str(error).partition("\n")[0]
        raise BadRowError(
            f"after row {row_number} the Parquet file cannot be read: {shorten(reason, 120)}",
            "Write it again, or give the rows as JSONL.",
        ) from None


def _lines_or_raise(stream: io.BufferedReader) -> Iterator[str]:
    for line_number, line in iterate_text_lines(stream):
        if not isinstance(line, str):
            raise BadRowError(f"line {line_number}: {line.problem}", line.remedy)
        yield line + "\n"
