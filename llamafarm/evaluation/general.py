"""Forgetting: the loss on general text, which no strategy trains on, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from llamafarm.data.conversation import TEXT, Conversation, Message
from llamafarm.data.reading.records import DataReader
from llamafarm.errors import DataError

BUILT_IN = "the built-in text"
_BUILT_IN_FILE = "general_text.txt"
_MOST_PARAGRAPHS = 500


def read_general_text(path: Path | None) -> list[Conversation]:
    """Return paragraphs of general text: of a file, or without one of what comes with the package.

    A `.txt` file has a paragraph on each line; any other is read as a data file, and its rows' texts are
    taken. Raises `DataError` if it cannot be read or is empty.
    """
    if path is None:
        text = files("llamafarm").joinpath("assets", _BUILT_IN_FILE).read_text(encoding="utf-8")
        return _paragraphs(text)
    if path.suffix.lower() != ".txt":
        return _texts_of_rows(path)
    try:
        found = _paragraphs(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the general text cannot be read: {error}", where=str(path), remedy="Name a UTF-8 text file."
        ) from None
    if not found:
        raise DataError(
            "the general text is empty", where=str(path), remedy="Give it a paragraph on each line."
        )
    return found


def _paragraphs(text: str) -> list[Conversation]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [_as_text(line, number) for number, line in enumerate(lines[:_MOST_PARAGRAPHS], 1)]


def _texts_of_rows(path: Path) -> list[Conversation]:
    rows = []
    for row in DataReader(path):
        rows.append(_as_text("\n".join(message.content for message in row.messages), row.row_number))
        if len(rows) == _MOST_PARAGRAPHS:
            break
    return rows


def _as_text(text: str, number: int) -> Conversation:
    return Conversation((Message(TEXT, text),), number)


def name_of(path: Path | None) -> str:
    """Return what the text is called in records."""
    return BUILT_IN if path is None else str(path)


def num_words(paragraphs: Sequence[Conversation]) -> int:
    """Return the words of all paragraphs."""
    return sum(len(paragraph.messages[0].content.split()) for paragraph in paragraphs)
