"""All rows of a data file, encoded: in memory, or in the cache if the file is large.

What is trained on is then chosen by index: no text is read again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llamafarm.data.columns import ColumnWriter
from llamafarm.data.encoding.block import BlockEncoder, EncodedBlock
from llamafarm.data.encoding.cache import TokenCache
from llamafarm.data.encoding.fitting import Excess, Limits, WhenTooLong
from llamafarm.data.encoding.processes import encode_file
from llamafarm.data.encoding.rows import EncodedRows
from llamafarm.data.reading.records import DataReader, FileReport
from llamafarm.data.selection.traces import Traces
from llamafarm.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST_BYTES_TO_CACHE = 4 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class EncodedTable:
    """The conversations of a file and their rows. Axes: N, conversations.

    Conversation n has `num_rows_N[n]` of `rows`, one after the other.
    """

    report: FileReport
    traces: Traces
    num_rows_N: NDArray[np.int32]
    is_remade_N: NDArray[np.bool_]
    rows: EncodedRows

    def places_of_rows(self, conversations: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where the rows of some conversations are, in the order of these."""
        numbers = self.num_rows_N[conversations].astype(np.int64)
        firsts = (np.cumsum(self.num_rows_N, dtype=np.int64) - self.num_rows_N)[conversations]
        within = np.arange(numbers.sum()) - np.repeat(np.cumsum(numbers) - numbers, numbers)
        places: NDArray[np.int64] = np.repeat(firsts, numbers) + within
        return places


def open_table(
    reader: DataReader,
    encoder: BlockEncoder,
    *,
    num_processes: int,
    cache: TokenCache,
    on_block: Callable[[int], None],
) -> EncodedTable:
    """Return the rows of a file: from the cache if they are there, else encoded, and kept there if large.

    `on_block` is told how many bytes of the file have been read. Raises `DataError` and `TemplateError` as
    `encode_file` does, and if the file changes meanwhile.
    """
    blocks = encode_file(reader, encoder, num_processes)
    if reader.num_bytes() < _LEAST_BYTES_TO_CACHE:
        writer = ColumnWriter(None)
        for block in blocks:
            writer.append(block.columns())
            on_block(reader.num_bytes_read)
        return table_of(reader.report(), EncodedBlock.of_columns(writer.finish()))
    sha256 = reader.hash_files()
    key = cache.key_of(reader, sha256, encoder) if encoder.encoding.tokenizer_json else None
    if key is not None and (found := cache.find(key, reader)) is not None:
        on_block(reader.num_bytes())
        return table_of(*found)
    with cache.writing(key) as kept:
        for block in blocks:
            kept.append(block)
            on_block(reader.num_bytes_read)
        if reader.sha256 != sha256:
            raise DataError(
                "the file changed while it was read",
                where=str(reader.path),
                remedy="Start again once nothing writes to it.",
            )
        whole = kept.finish(reader.report())
    return table_of(reader.report(), whole)


def fit_rows(
    table: EncodedTable,
    conversations: NDArray[np.int64],
    limits: Limits,
    when_too_long: WhenTooLong,
    kind: str,
) -> tuple[EncodedRows, list[str]]:
    """Return the rows of some conversations within the limits, and what became of the others, as sentences.

    `kind` names the rows in these. Raises `DataError` with `error` for the first that is too long.
    """
    rows = table.rows.select(table.places_of_rows(conversations))
    is_kept_R = np.ones(len(rows), bool)
    warnings = []
    for excess in limits.excesses(rows.lengths_N, rows.num_supervised_N):
        if not excess.is_above_N.any():
            continue
        if when_too_long == "error":
            raise _refusal(excess, rows)
        longest = excess.num_tokens_N[excess.is_above_N].max()
        is_kept_R &= ~excess.is_above_N
        warnings.append(
            f"{excess.is_above_N.sum()} of {len(rows)} {kind} rows are too long and left out: the longest "
            f"has {longest} tokens, and {excess.setting} is {excess.limit} "
            f"(data_preprocessing.{excess.setting})"
        )
    is_remade = table.is_remade_N[conversations]
    if is_remade.any():
        num_made = table.num_rows_N[conversations][is_remade].sum()
        how = "with a shorter prompt" if when_too_long == "truncate_prompt" else f"as {num_made} rows"
        warnings.append(
            f"{is_remade.sum()} of {len(conversations)} {kind} rows are too long and are taken {how} "
            f"(dataset.when_too_long: {when_too_long})"
        )
    return rows.select(np.flatnonzero(is_kept_R)), warnings


def _refusal(excess: Excess, rows: EncodedRows) -> DataError:
    first = int(np.flatnonzero(excess.is_above_N)[0])
    return DataError(
        f"the row has {excess.num_tokens_N[first]} tokens, and {excess.setting} is {excess.limit}",
        where=f"row {rows.row_numbers_N[first]}",
        remedy=f"Raise data_preprocessing.{excess.setting}, shorten the row, or set dataset.when_too_long.",
    )


def table_of(report: FileReport, block: EncodedBlock) -> EncodedTable:
    """Return the table of a file, all of whose rows are in one block."""
    return EncodedTable(report, block.traces, block.num_rows_N, block.is_remade_N, block.rows())
