"""What a row means: the forms of rows in use, each made into messages.

Which form a row has is told from its keys; a new form is a new function and a line in `FORMATS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llamafarm.data.conversation import TEXT, Message
from llamafarm.data.reading.bad_row import BadRowError, EmptyTurnError, Row, check_text, shorten, show_keys
from llamafarm.data.reading.turns import read_turns


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A form of row: the keys that give it away, and how its messages are taken out."""

    name: str
    keys: frozenset[str]
    read_messages: Callable[[Row], tuple[Message, ...]]


def rename_columns(row: Row, columns: Mapping[str, str]) -> Row:
    """Return a row under the names that forms know; `columns` maps those to the names in the file.

    What is not mapped is left out. Raises `BadRowError` if the row lacks a column.
    """
    missing = [column for column in columns.values() if column not in row]
    if missing:
        raise BadRowError(
            f"the row has no column {shorten(missing[0])}; it has {show_keys(row)}",
            "Correct dataset.columns.",
        )
    return {name: row[column] for name, column in columns.items()}


def detect_format(row: Row) -> RowFormat:
    """Return the form that a row's keys tell of. Raises `BadRowError` if there is none."""
    whole = [row_format for row_format in FORMATS if row_format.keys <= row.keys()]
    # A row that has a part of a form is a row of that form with something missing, and is told so.
    partial = [row_format for row_format in FORMATS if row_format.keys & row.keys()]
    if whole or partial:
        return (whole or partial)[0]
    known = "; ".join(", ".join(sorted(row_format.keys)) for row_format in FORMATS)
    raise BadRowError(
        f"no known form of row has the keys {show_keys(row)}",
        f"Use rows with the keys of one of these forms ({known}), or name the columns in dataset.columns.",
    )


def check_keys(row: Row, row_format: RowFormat) -> None:
    """Raise `BadRowError` if the row lacks a key of its form; `EmptyTurnError` if that is the answer."""
    missing = sorted(row_format.keys - row.keys())
    if not missing:
        return
    is_answer = missing[0] in ("output", "completion", "answer")
    problem = f"the row has no {missing[0]!r}, which rows of the form {row_format.name} have"
    if is_answer:
        raise EmptyTurnError(f"the row has no answer: {problem}", f"Add {missing[0]!r}, or delete the row.")
    raise BadRowError(problem, f"Add {missing[0]!r}, or keep rows of one form in one file.")


def read_tools(row: Row) -> tuple[Mapping[str, Any], ...]:
    """Return the functions that a row tells the model of: a list of objects, or that as JSON text."""
    tools = row.get("tools")
    if not tools:
        return ()
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRowError("'tools' is not a list of objects", "Describe each tool as OpenAI's files do.")
    return tuple(tools)


def check_turns(messages: tuple[Message, ...]) -> None:
    """Raise `BadRowError` unless user and assistant take turns and the assistant has the last word.

    After a call of a tool come its results, and then the assistant again.
    """
    if messages and messages[0].role == TEXT:
        if not messages[0].content.strip():
            raise EmptyTurnError("the text is empty", "Fill it in, or delete the row.")
        return
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    expected: tuple[str, ...] = ("user",)
    for message in turns:
        if message.role not in expected:
            raise BadRowError(
                f"a turn of {shorten(message.role, 20)} stands where one of {expected[0]!r} belongs",
                "Let user and assistant take turns, the user first, after at most one system message.",
            )
        calls_a_tool = bool(message.extras and message.extras.get("tool_calls"))
        if not (message.content.strip() or message.input.strip() or calls_a_tool or message.role == "tool"):
            name = "the answer" if message.role == "assistant" else "the prompt"
            raise EmptyTurnError(f"{name} is empty", "Fill it in, or delete the row.")
        expected = _roles_after(message.role, calls_a_tool)
    if not turns or turns[-1].role != "assistant":
        raise EmptyTurnError(
            "the row has no answer", "End the row with what the model should say, or delete it."
        )


def _roles_after(role: str, calls_a_tool: bool) -> tuple[str, ...]:
    if role == "assistant":
        return ("tool", "user") if calls_a_tool else ("user",)
    return ("assistant", "tool") if role == "tool" else ("assistant",)


def read_text(row: Row, key: str) -> str:
    """Return a field as text; empty where it is not there. Raises `BadRowError` for anything but text."""
    value = row.get(key)
    return "" if value is None else check_text(value, key)


def _read_alpaca(row: Row) -> tuple[Message, ...]:
    instruction, extra = read_text(row, "instruction"), read_text(row, "input")
    if not instruction.strip():
        instruction, extra = extra, ""
    turns = Message("user", instruction, extra), Message("assistant", read_text(row, "output"))
    return (*_system(row), *turns)


def _read_pair(prompt_key: str, answer_key: str) -> Callable[[Row], tuple[Message, ...]]:
    def read(row: Row) -> tuple[Message, ...]:
        prompt, answer = row.get(prompt_key), row.get(answer_key)
        if isinstance(prompt, list) and isinstance(answer, list):  # of turns each, as TRL has them
            return read_turns([*prompt, *answer], prompt_key)
        return (
            *_system(row),
            Message("user", read_text(row, prompt_key)),
            Message("assistant", read_text(row, answer_key)),
        )

    return read


def _read_messages(key: str) -> Callable[[Row], tuple[Message, ...]]:
    def read(row: Row) -> tuple[Message, ...]:
        turns = read_turns(row[key], key)
        return turns if turns and turns[0].role == "system" else (*_system(row), *turns)

    return read


def _read_plain(row: Row) -> tuple[Message, ...]:
    return (Message(TEXT, read_text(row, "text")),)


def _system(row: Row) -> Iterable[Message]:
    system = read_text(row, "system")
    return (Message("system", system),) if system.strip() else ()


FORMATS: tuple[RowFormat, ...] = (
    RowFormat("messages", frozenset({"messages"}), _read_messages("messages")),
    RowFormat("sharegpt", frozenset({"conversations"}), _read_messages("conversations")),
    RowFormat("alpaca", frozenset({"instruction", "output"}), _read_alpaca),
    RowFormat("prompt-completion", frozenset({"prompt", "completion"}), _read_pair("prompt", "completion")),
    RowFormat("question-answer", frozenset({"question", "answer"}), _read_pair("question", "answer")),
    RowFormat("text", frozenset({"text"}), _read_plain),
)
