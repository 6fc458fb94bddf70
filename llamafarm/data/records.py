"""Read a data file into conversations.

A row is one JSON object on one line. Which of the known forms a file has is told from the keys of its first
row (`FORMATS`); a new form is a new function and a line in that table. Cleaning and splitting are in
`corpus`, rendering in `template`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamafarm.data.conversation import Conversation, Message
from llamafarm.errors import DataError

if TYPE_CHECKING:
    from hashlib import _Hash as Hash


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file that has been read: its rows, the name of their form, and the hash of its bytes.

    `num_empty_rows` were left out, because they were asked to be.
    """

    path: Path
    format_name: str
    conversations: tuple[Conversation, ...]
    sha256: str
    num_empty_rows: int = 0


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A form of row: the keys that give it away, and how its messages are taken out."""

    name: str
    keys: frozenset[str]
    read_messages: Callable[[Mapping[str, Any]], tuple[Message, ...]]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a data file is read: its form of rows, or `auto`; whether rows with an empty turn are left out."""

    format_name: str = "auto"
    filter_empty: bool = False


class _BadRowError(Exception):
    """What is wrong with a row and what to try; the caller knows the file and the line."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class _EmptyTurnError(_BadRowError):
    """A row whose prompt or answer is empty or not there."""


class DataReader:
    """The conversations of a data file, read one by one: iterating it reads the file.

    Raises `DataError` with the line's number for a file that cannot be read, and for a row that is no JSON
    object, is not of the form, or has an empty turn. `format_name` and `sha256` (of the file's bytes) are
    known once the file has been read to its end, the counts as far as it has been.
    """

    def __init__(self, path: Path, options: ReadOptions | None = None) -> None:
        self.path = path
        self.options = options or ReadOptions()
        self.format_name = self.options.format_name
        self.sha256 = ""
        self.num_rows = 0
        self.num_empty_rows = 0

    def __iter__(self) -> Iterator[Conversation]:
        """Read the file from its beginning."""
        self.num_rows = self.num_empty_rows = 0
        row_format = next((known for known in FORMATS if known.name == self.options.format_name), None)
        hasher = hashlib.sha256()
        for line_number, line in _read_lines(self.path, hasher):
            try:
                row = parse_row(line)
                row_format = row_format or _detect_format(row)
                _check_keys(row, row_format)
                messages = row_format.read_messages(row)
                _check_turns(messages)
            except _BadRowError as bad:
                if self.options.filter_empty and isinstance(bad, _EmptyTurnError):
                    self.num_empty_rows += 1
                    continue
                raise DataError(bad.problem, where=f"{self.path}:{line_number}", remedy=bad.remedy) from None
            self.num_rows += 1
            yield Conversation(messages, line_number)
        if not self.num_rows or row_format is None:
            raise DataError(
                "the file has no rows",
                where=str(self.path),
                remedy="Give a JSONL file with one example on each line.",
            )
        self.format_name, self.sha256 = row_format.name, hasher.hexdigest()


def read_data_file(path: Path, *, format_name: str = "auto", filter_empty: bool = False) -> DataFile:
    """Read every row of a data file, as `DataReader` does and with its errors, into memory.

    `format_name` is one of `FORMATS`, or `auto`. Rows with an empty prompt or answer are left out with
    `filter_empty`.
    """
    reader = DataReader(path, ReadOptions(format_name, filter_empty))
    conversations = tuple(reader)
    return DataFile(path, reader.format_name, conversations, reader.sha256, reader.num_empty_rows)


def _read_lines(path: Path, hasher: Hash) -> Iterator[tuple[int, bytes]]:
    r"""Yield each line that is not blank, with its number from 1. Only `\n` ends a line, as JSONL has it."""
    check_is_file(path)
    try:
        with path.open("rb") as file:
            for line_number, line in enumerate(file, start=1):
                hasher.update(line)
                stripped = (line.removeprefix(b"\xef\xbb\xbf") if line_number == 1 else line).strip()
                if stripped:
                    yield line_number, stripped
    except OSError as error:
        raise DataError(
            f"the file cannot be read: {error.strerror}",
            where=str(path),
            remedy="Check the file's permissions.",
        ) from error


def iterate_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each line of a data file that is not blank, with its number from 1."""
    return _read_lines(path, hashlib.sha256())


def check_is_file(path: Path) -> None:
    """Raise `DataError` if there is no regular file at `path`."""
    if not path.exists():
        raise DataError(
            f"there is no file {path.name!r}", where=str(path), remedy="Check the path, or make the file."
        )
    if not path.is_file():
        raise DataError(f"{path.name!r} is not a file", where=str(path), remedy="Name a JSONL file.")


def parse_row(line: bytes) -> Mapping[str, Any]:
    """Return the JSON object that a line holds; anything else is a bad row."""
    shown = repr(line[:60].decode("utf-8", errors="replace"))
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _BadRowError(
            f"the line is not UTF-8 at byte {error.start}: {shown}", "Save as UTF-8."
        ) from None
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "it nests too deeply or holds a number that is too long")
        raise _BadRowError(
            f"the line is not JSON ({reason}): {shown}", "Write one JSON object on each line (JSONL)."
        ) from None
    if not isinstance(row, dict):
        raise _BadRowError(
            f"the line is {type(row).__name__}, not a JSON object: {shown}",
            'Write rows such as {"instruction": "…", "input": "", "output": "…"}',
        )
    return row


def _detect_format(row: Mapping[str, Any]) -> RowFormat:
    whole = [row_format for row_format in FORMATS if row_format.keys <= row.keys()]
    # A row that has a part of a form is a row of that form with something missing, and is told so.
    partial = [row_format for row_format in FORMATS if row_format.keys & row.keys()]
    if whole or partial:
        return (whole or partial)[0]
    known = "; ".join(", ".join(sorted(row_format.keys)) for row_format in FORMATS)
    raise _BadRowError(
        f"no known form of row has the keys {', '.join(map(repr, row)) or '(none)'}",
        f"Use rows with the keys of one of these forms: {known}.",
    )


def _check_keys(row: Mapping[str, Any], row_format: RowFormat) -> None:
    missing = sorted(row_format.keys - row.keys())
    if not missing:
        return
    is_answer = missing[0] in ("output", "completion", "answer")
    problem = f"the row has no {missing[0]!r}, which rows of the form {row_format.name} have"
    if is_answer:
        raise _EmptyTurnError(f"the row has no answer: {problem}", f"Add {missing[0]!r}, or delete the row.")
    raise _BadRowError(problem, f"Add {missing[0]!r}, or keep rows of one form in one file.")


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _BadRowError(
            f"{key!r} is {type(value).__name__}, not a text", f"Write {key!r} as a JSON string."
        )
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise _BadRowError(
            f"{key!r} has half of a character, \\ud800 to \\udfff", "Save the file as UTF-8 again."
        )
    return value


def _check_turns(messages: tuple[Message, ...]) -> None:
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    expected = "user"
    for message in turns:
        if message.role != expected:
            raise _BadRowError(
                f"a turn of {message.role!r} stands where one of {expected!r} belongs",
                "Let user and assistant take turns, the user first, after at most one system message.",
            )
        if not message.content.strip() and not message.input.strip():
            name = "the answer" if message.role == "assistant" else "the prompt"
            raise _EmptyTurnError(f"{name} is empty", "Fill it in, or delete the row.")
        expected = "assistant" if expected == "user" else "user"
    if not turns or expected != "user":
        raise _EmptyTurnError(
            "the row has no answer", "End the row with what the model should say, or delete it."
        )


def _read_alpaca(row: Mapping[str, Any]) -> tuple[Message, ...]:
    instruction, extra = _text(row, "instruction"), _text(row, "input")
    if not instruction.strip():
        instruction, extra = extra, ""
    turns = Message("user", instruction, extra), Message("assistant", _text(row, "output"))
    system = _text(row, "system")
    return (Message("system", system), *turns) if system.strip() else turns


def _read_pair(prompt_key: str, answer_key: str) -> Callable[[Mapping[str, Any]], tuple[Message, ...]]:
    def read(row: Mapping[str, Any]) -> tuple[Message, ...]:
        return Message("user", _text(row, prompt_key)), Message("assistant", _text(row, answer_key))

    return read


def _read_messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _BadRowError(
            "'messages' is not a list of objects", 'Use [{"role": "user", "content": "…"}, …].'
        )
    return tuple(Message(_text(message, "role"), _text(message, "content")) for message in messages)


FORMATS: tuple[RowFormat, ...] = (
    RowFormat("messages", frozenset({"messages"}), _read_messages),
    RowFormat("alpaca", frozenset({"instruction", "output"}), _read_alpaca),
    RowFormat("prompt-completion", frozenset({"prompt", "completion"}), _read_pair("prompt", "completion")),
    RowFormat("question-answer", frozenset({"question", "answer"}), _read_pair("question", "answer")),
)
