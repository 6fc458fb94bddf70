"""What `complete` is asked: one prompt, or all that a file of them holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamafarm import terminal
from llamafarm.commands.options import load_with_options
from llamafarm.errors import DataError, InputError

if TYPE_CHECKING:
    from llamafarm.data.conversation import Message
    from llamafarm.data.reading.bad_row import Row

# Where rows of each form have their prompt, and where the answer.
_PAIRS = {"prompt": "completion", "instruction": "output", "question": "answer"}
# Stands for the answer of a row that has none; it is never shown to a model.
_NO_ANSWER = "-"
_TURNS = {
    "messages": {"role": "assistant", "content": _NO_ANSWER},
    "conversations": {"from": "gpt", "value": _NO_ANSWER},
}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: the last turn's text, all messages, and where they stand."""

    prompt: str
    messages: tuple[Message, ...]
    where: str


def question_of(prompt: str, system: str | None) -> Question:
    """Return what a prompt asks; `-` is read from stdin. Raises `InputError` if it is empty."""
    from llamafarm.data.conversation import Message

    text = terminal.read_all() if prompt == "-" else prompt
    if not text.strip():
        raise InputError("the prompt is empty", where="complete", remedy='Ask something: complete "…".')
    given = () if system is None else (Message("system", system),)
    return Question(text, (*given, Message("user", text)), "the prompt")


def columns_of(
    strategy: str | None, strategy_file: Path | None, settings: Sequence[str] | None
) -> dict[str, str]:
    """Return how the strategy's data files name what forms of rows know."""
    loaded = load_with_options(strategy, strategy_file, settings)
    return {name: column for name, column in loaded.strategy.dataset.columns if column is not None}


def read_questions(path: Path, system: str | None, columns: Mapping[str, str]) -> Iterator[Question]:
    """Yield the questions of a file. Raises `DataError`, with file and line, for a row that asks nothing."""
    from llamafarm.data.conversation import Message
    from llamafarm.data.reading.bad_row import BadRowError
    from llamafarm.data.reading.files import data_files
    from llamafarm.data.reading.json_rows import parse_row
    from llamafarm.data.reading.records import DataReader, ReadOptions, RowParser
    from llamafarm.data.reading.streams import SeenBytes, iterate_text_lines, open_stream

    is_lines = path.suffix.lower() == ".txt"
    given = [Message("system", system)] if system is not None else []
    parser = RowParser(ReadOptions())
    rows = DataReader(path).iterate_raw()
    if is_lines:
        (file,) = data_files(path)
        rows = ((file, *line) for line in iterate_text_lines(open_stream(file, SeenBytes())))
    for file, row_number, raw in rows:
        try:
            if isinstance(raw, BadRowError):
                raise raw
            if is_lines:
                messages: Sequence[Message] = [Message("user", str(raw)), Message("assistant", _NO_ANSWER)]
            else:
                row = parse_row(raw) if isinstance(raw, str) else raw
                conversation = parser.parse(row_number, _fill(row, columns))
                messages = conversation.messages
                if conversation.tools:
                    raise BadRowError("the row has tools, which are not passed on", "Ask without them.")
        except BadRowError as bad:
            raise DataError(bad.problem, where=f"{file}:{row_number}", remedy=bad.remedy) from None
        *asking, _ = messages
        if asking and asking[-1].content.strip() + asking[-1].input.strip():
            asking = asking if asking[0].role == "system" else [*given, *asking]
            yield Question(_text_of(asking[-1]), tuple(asking), f"{file}:{row_number}")
        elif not is_lines:
            raise DataError("the row asks nothing", where=f"{file}:{row_number}", remedy="Delete it.")


def _fill(row: Row, columns: Mapping[str, str]) -> Row:
    """Return a row under the names that forms know, with something for an answer where it has none."""
    renamed = {name: row[column] for name, column in columns.items() if column in row}
    row = renamed or row
    for key, turn in _TURNS.items():
        turns = row.get(key)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            is_asked = turns[-1].get("role", turns[-1].get("from")) in ("user", "human", "tool")
            return {**row, key: [*turns, turn]} if is_asked else row
    for key, answer in _PAIRS.items():
        if key in row and not row.get(answer):
            nothing = [_TURNS["messages"]] if isinstance(row[key], list) else _NO_ANSWER
            return {**row, answer: nothing}
    return row


def _text_of(message: Message) -> str:
    return "\n\n".join(text for text in (message.content, message.input) if text.strip())
