"""What processes that encode rows tell each other: JSON, and the arrays of a block as they lie in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from llamafarm.data.encoding.block import EncodedBlock
from llamafarm.data.reading.bad_row import BadRowError, EmptyTurnError, RawRow
from llamafarm.errors import DataError, LlamaFarmError, TemplateError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LENGTH_BYTES = 8
_ERRORS: dict[str, type[LlamaFarmError]] = {kind.__name__: kind for kind in (DataError, TemplateError)}


def describe_rows(rows: Sequence[RawRow]) -> list[Any]:
    """Return raw rows as JSON has them, for `rows_of`; a table's dates and the like stay what they are."""
    return [[number, _describe_bad(raw) if isinstance(raw, BadRowError) else raw] for number, raw in rows]


def rows_of(described: Sequence[Any]) -> list[RawRow]:
    """Return the rows that `describe_rows` described."""
    return [(number, _bad_of(raw) if isinstance(raw, list) else raw) for number, raw in described]


def write_message(stream: IO[bytes], record: Any, arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
    """Write JSON and arrays, for `read_message`.

    Raises `TypeError`, with nothing written, for what JSON does not have.
    """
    shapes = {name: (array.dtype.str, array.shape) for name, array in (arrays or {}).items()}
    head = json.dumps([record, shapes]).encode()
    stream.write(len(head).to_bytes(_LENGTH_BYTES, "little"))
    stream.write(head)
    for array in (arrays or {}).values():
        stream.write(np.ascontiguousarray(array).data)
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[Any, dict[str, NDArray[Any]]]:
    """Return JSON and arrays. Raises `EOFError` where there are no more."""
    head = _read(stream, int.from_bytes(_read(stream, _LENGTH_BYTES), "little"))
    record, shapes = json.loads(head)
    arrays = {}
    for name, (dtype, shape) in shapes.items():
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(_read(stream, num_bytes), dtype).reshape(shape)
    return record, arrays


def write_result(stream: IO[bytes], result: EncodedBlock | LlamaFarmError) -> None:
    """Write what became of a block, for `read_result`."""
    if isinstance(result, LlamaFarmError):
        parts = [result.problem, result.where, result.remedy]
        write_message(stream, {"error": type(result).__name__, "parts": parts})
        return
    bad_rows = [[number, _describe_bad(bad)] for number, bad in result.bad_rows]
    write_message(stream, {"bad_rows": bad_rows}, result.columns())


def read_result(stream: IO[bytes]) -> EncodedBlock:
    """Return an encoded block. Raises the error that came in its place, and `EOFError`."""
    record, arrays = read_message(stream)
    if "error" in record:
        problem, where, remedy = record["parts"]
        raise _ERRORS[record["error"]](problem, where=where, remedy=remedy)
    bad_rows = tuple((number, _bad_of(bad)) for number, bad in record["bad_rows"])
    return replace(EncodedBlock.of_columns(arrays), bad_rows=bad_rows)


def _describe_bad(bad: BadRowError) -> list[Any]:
    return [isinstance(bad, EmptyTurnError), bad.problem, bad.remedy]


def _bad_of(described: Sequence[Any]) -> BadRowError:
    is_empty, problem, remedy = described
    return (EmptyTurnError if is_empty else BadRowError)(problem, remedy)


def _read(stream: IO[bytes], num_bytes: int) -> bytes:
    content = stream.read(num_bytes)
    if len(content) < num_bytes:
        raise EOFError
    return content
