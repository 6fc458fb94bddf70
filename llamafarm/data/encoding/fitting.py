"""Rows that are too long: left out, made to fit by a shorter prompt or as several rows, or refused.

An answer is never cut: a model that is trained on half of one learns not to end it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.encoding.rows import EncodedRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

WhenTooLong = Literal["drop", "truncate_prompt", "split", "error"]
Encode = Callable[[Conversation], Sequence[EncodedRow]]

# A cut is moved on to the end of a word, if one ends within so many characters.
_LONGEST_WORD = 24


@dataclass(frozen=True, slots=True, eq=False)
class Excess:
    """A limit, what it counts, and which rows are above it and above none before. Axis: N, rows."""

    setting: str
    limit: int
    num_tokens_N: NDArray[np.int32]
    is_above_N: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Limits:
    """The lengths in tokens that a row must keep; None where there is no limit."""

    max_length: int
    max_input_length: int | None = None
    max_output_length: int | None = None

    def excesses(self, num_tokens_N: NDArray[np.int32], num_supervised_N: NDArray[np.int32]) -> list[Excess]:
        """Return the limits with the rows that are above them, given the rows' tokens."""
        found: list[Excess] = []
        is_within_N = np.ones(len(num_tokens_N), bool)
        for setting, limit, counted_N in (
            ("max_length", self.max_length, num_tokens_N),
            ("max_input_length", self.max_input_length, num_tokens_N - num_supervised_N),
            ("max_output_length", self.max_output_length, num_supervised_N),
        ):
            if limit is not None:
                is_above_N = is_within_N & (counted_N > limit)
                is_within_N &= ~is_above_N
                found.append(Excess(setting, limit, counted_N, is_above_N))
        return found

    def admit(self, rows: Sequence[EncodedRow]) -> bool:
        """Return whether there are rows and all of them are within the limits."""
        lengths = np.array([row.num_tokens for row in rows], np.int32)
        supervised = np.array([row.num_supervised_tokens for row in rows], np.int32)
        return bool(rows) and not any(
            excess.is_above_N.any() for excess in self.excesses(lengths, supervised)
        )


@dataclass(frozen=True, slots=True)
class Fitting:
    """How rows above the limits are made to fit."""

    limits: Limits
    when_too_long: Literal["truncate_prompt", "split"]


def remake(conversation: Conversation, fitting: Fitting, encode: Encode) -> list[EncodedRow]:
    """Return rows within the limits for a conversation that is above them; none if there is no way."""
    return _REMAKE[fitting.when_too_long](conversation, fitting.limits, encode)


def _shorten_prompt(conversation: Conversation, limits: Limits, encode: Encode) -> list[EncodedRow]:
    """Return the rows with as much of the end of the prompt as fits: first whole exchanges go, then words."""
    head, exchanges = _exchanges(conversation)
    for first in range(len(exchanges)):
        shorter = _with_exchanges(conversation, head, exchanges[first:])
        if limits.admit(rows := encode(shorter)):
            return list(rows)
    if not exchanges:
        return []
    question, *rest = exchanges[-1]
    # Of an Alpaca row the input is shortened and the instruction kept.
    field = "input" if question.input.strip() else "content"
    text = getattr(question, field)

    def rows_from(start: int) -> Sequence[EncodedRow]:
        shortened = replace(question, **{field: text[start:]})
        return encode(_with_exchanges(conversation, head, [(shortened, *rest)]))

    fits_from, too_long_from = len(text) - 1, 0
    while fits_from - too_long_from > 1:
        middle = (fits_from + too_long_from) // 2
        if limits.admit(rows_from(middle)):
            fits_from = middle
        else:
            too_long_from = middle
    for start in (_next_word(text, fits_from), fits_from):
        if limits.admit(rows := rows_from(start)):
            return list(rows)
    return []


def _spread(conversation: Conversation, limits: Limits, encode: Encode) -> list[EncodedRow]:
    """Return rows of as many exchanges as fit, each with the system message; nothing if one never fits."""
    head, exchanges = _exchanges(conversation)
    made: list[EncodedRow] = []
    start = 0
    while start < len(exchanges):
        rows: Sequence[EncodedRow] = []
        for end in range(len(exchanges), start, -1):
            rows = encode(_with_exchanges(conversation, head, exchanges[start:end]))
            if limits.admit(rows):
                break
        else:
            return []
        made += rows
        start = end
    return made


_REMAKE: dict[str, Callable[[Conversation, Limits, Encode], list[EncodedRow]]] = {
    "truncate_prompt": _shorten_prompt,
    "split": _spread,
}


def _exchanges(conversation: Conversation) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """Return the system message, if any, and the exchanges: each a question and all up to the next one."""
    messages = conversation.messages
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    ends = [*starts[1:], len(messages)][: len(starts)]
    exchanges = [messages[start:end] for start, end in zip(starts, ends, strict=True)]
    return messages[: starts[0]] if starts else (), exchanges


def _with_exchanges(
    conversation: Conversation, head: tuple[Message, ...], exchanges: Sequence[tuple[Message, ...]]
) -> Conversation:
    return replace(conversation, messages=(*head, *_flat(exchanges)))


def _flat(exchanges: Sequence[tuple[Message, ...]]) -> Iterator[Message]:
    for exchange in exchanges:
        yield from exchange


def _next_word(text: str, start: int) -> int:
    """Return where the next word begins, if that is near; else `start`."""
    for position in range(start, min(start + _LONGEST_WORD, len(text) - 1)):
        if text[position].isspace() and not text[position + 1].isspace():
            return position + 1
    return start
