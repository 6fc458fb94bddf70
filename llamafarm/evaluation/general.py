"""Forgetting: the loss on general text, which no strategy trains on, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path

from llamafarm.data.conversation import TEXT, Conversation, Message
from llamafarm.data.reading.records import DataReader
from llamafarm.errors import DataError

BUILT_IN = "the built-in text"
_BUILT_IN_FILE = "general_text.txt"
_MOST_PARAGRAPHS = 500


@dataclass(frozen=True, slots=True)
class GeneralText:
    """Paragraphs of general text, and what it is called in records; None where there is to be none."""

    name: str | None
    paragraphs: tuple[Conversation, ...]

    @classmethod
    def nothing(cls) -> GeneralText:
        """Return a text without paragraphs: forgetting is not measured."""
        return cls(None, ())

    def as_record(self) -> dict[str, str | int] | None:
        """Return its name and its number of words, None where it is nothing."""
        if self.name is None:
            return None
        num_words = sum(len(paragraph.messages[0].content.split()) for paragraph in self.paragraphs)
        return {"name": self.name, "num_words": num_words}


def read_general_text(path: Path | None) -> GeneralText:
    """Return general text: of a file, or without one what comes with the package.

    A `.txt` file has a paragraph on each line; any other is read as a data file, and its rows' texts are
    taken. Raises `DataError` if it cannot be read or is empty.
    """
    if path is None:
        text = files("llamafarm").joinpath("assets", _BUILT_IN_FILE).read_text(encoding="utf-8")
        return GeneralText(BUILT_IN, _paragraphs(text))
    if path.suffix.lower() != ".txt":
        return GeneralText(str(path), _texts_of_rows(path))
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
    return GeneralText(str(path), found)


def _paragraphs(text: str) -> tuple[Conversation, ...]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return tuple(_as_text(line, number) for number, line in enumerate(lines[:_MOST_PARAGRAPHS], 1))


def _texts_of_rows(path: Path) -> tuple[Conversation, ...]:
    return tuple(
        _as_text("\n".join(message.content for message in row.messages), row.row_number)
        for row in islice(DataReader(path), _MOST_PARAGRAPHS)
    )


def _as_text(text: str, number: int) -> Conversation:
    return Conversation((Message(TEXT, text),), number)
