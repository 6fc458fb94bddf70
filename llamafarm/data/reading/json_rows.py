"""Rows in JSON: an object on each line, or one list of objects. Stricter than Python's reader.

NaN and Infinity, and a key that an object has twice, are refused: the next reader takes something else.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any, NoReturn

from llamafarm.data.reading.bad_row import BadRowError, NumberedRow, RawRow, Row, shorten, show_keys
from llamafarm.data.reading.streams import NumberedLine, iterate_text_lines

# A list has to be held whole, as text and as objects.
_MOST_CHARACTERS_OF_A_LIST = 512 * 2**20


def read_json_rows(stream: io.BufferedReader) -> Iterator[RawRow]:
    """Yield the rows of a file of lines, not parsed yet, or of one list, whichever it begins as."""
    is_document, lines = _begin(stream)
    if is_document:
        yield from _read_list(_whole_text(lines))
        return
    for line_number, line in lines:
        if not isinstance(line, str) or line.strip():
            yield line_number, line


def read_json_texts(stream: io.BufferedReader) -> Iterator[tuple[int, str]]:
    """Yield the rows as JSON text with their numbers: of a file of lines, each as it stands there."""
    is_document, lines = _begin(stream)
    if is_document:
        for row_number, row in _read_list(_whole_text(lines)):
            if not isinstance(row, BadRowError):
                yield row_number, write_row(row)
        return
    for line_number, line in lines:
        if isinstance(line, str) and line.strip():
            yield line_number, line.strip()


def write_row(row: Row) -> str:
    """Return a row as a line of JSON; dates and the like, which tables have, as text."""
    return json.dumps(row, ensure_ascii=False, default=str)


def _begin(stream: io.BufferedReader) -> tuple[bool, Iterator[NumberedLine]]:
    """Return whether the stream holds one list or object, and all of its lines."""
    lines = iterate_text_lines(stream)
    before: list[NumberedLine] = []
    for numbered in lines:
        before.append(numbered)
        if not isinstance(numbered[1], str) or numbered[1].strip():
            break
    first = before[-1][1] if before else ""
    is_document = isinstance(first, str) and (first.lstrip().startswith("[") or first.strip() == "{")
    return is_document, chain(before, lines)


def parse_row(line: str) -> dict[str, Any]:
    """Return the JSON object that a line holds. Raises `BadRowError` for anything else."""
    row = parse_json(line)
    if not isinstance(row, dict):
        raise BadRowError(
            f"the line is {type(row).__name__}, not a JSON object: {shorten(line.strip())}",
            'Write rows such as {"instruction": "…", "input": "", "output": "…"}',
        )
    return row


def parse_json(text: str) -> Any:
    """Return what a JSON text means. Raises `BadRowError`, with the text shortened."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeats)
    except BadRowError:
        raise
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "it nests too deeply or holds a number that is too long")
        line_number = getattr(error, "lineno", 1)
        which = f"line {line_number}" if line_number > 1 else "the line"
        shown = text.strip() if line_number == 1 else text.split("\n")[line_number - 1].strip()
        raise BadRowError(
            f"{which} is not JSON ({reason}): {shorten(shown)}", "Write one JSON object on each line (JSONL)."
        ) from None


def _whole_text(lines: Iterator[NumberedLine]) -> str:
    parts: list[str] = []
    num_characters = 0
    for line_number, line in lines:
        if not isinstance(line, str):
            raise BadRowError(f"line {line_number}: {line.problem}", line.remedy)
        num_characters += len(line)
        if num_characters > _MOST_CHARACTERS_OF_A_LIST:
            raise BadRowError(
                "the list is longer than 512 MiB, and it has to be held whole",
                "Write one JSON object on each line (JSONL), which is read line by line.",
            )
        parts.append(line)
    return "\n".join(parts)


def _read_list(text: str) -> Iterator[NumberedRow]:
    document = parse_json(text)
    if isinstance(document, dict):
        lists = [key for key, value in document.items() if isinstance(value, list)]
        if len(lists) != 1 or not all(isinstance(row, dict) for row in document[lists[0]]):
            raise BadRowError(
                f"the file is one JSON object, with the keys {show_keys(document)}",
                "Write one JSON object on each line (JSONL), or one list of objects.",
            )
        document = document[lists[0]]
    for row_number, row in enumerate(document, start=1):
        if isinstance(row, dict):
            yield row_number, row
        else:
            fault = f"entry {row_number} of the list is {type(row).__name__}, not an object"
            yield row_number, BadRowError(fault, "Write a list of objects.")


def _refuse_constant(name: str) -> NoReturn:
    raise BadRowError(f"the row holds {name}, which is not JSON", "Write null, or leave the key out.")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadRowError(f"an object has the key {shorten(repeated)} twice", "Remove one of the two.")
    return found
