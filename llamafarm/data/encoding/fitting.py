"""Rows that are too long: left out, made to fit by a shorter prompt or as several rows, or refused.

An answer is never cut: a model that is trained on half of one learns not to end it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.encoding.encode import EncodedRow
from llamafarm.errors import DataError

WhenTooLong = Literal["drop", "truncate_prompt", "split", "error"]
Encode = Callable[[Conversation], Sequence[EncodedRow]]

# A cut is moved on to the end of a word, if one ends within so many characters.
_LONGEST_WORD = 24


@dataclass(frozen=True, slots=True)
class Excess:
    """A limit that rows are above: its setting, its value and the longest of them in tokens."""

    setting: str
    limit: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """The lengths in tokens that a row must keep; None where there is no limit."""

    max_length: int
    max_input_length: int | None = None
    max_output_length: int | None = None

    def excess_of(self, row: EncodedRow) -> Excess | None:
        """Return the first limit that a row is above."""
        num_answer_tokens = row.num_supervised_tokens
        for setting, limit, num_tokens in (
            ("max_length", self.max_length, row.num_tokens),
            ("max_input_length", self.max_input_length, row.num_tokens - num_answer_tokens),
            ("max_output_length", self.max_output_length, num_answer_tokens),
        ):
            if limit is not None and num_tokens > limit:
                return Excess(setting, limit, num_tokens)
        return None

    def admit(self, rows: Sequence[EncodedRow]) -> bool:
        """Return whether there are rows and all of them are within the limits."""
        return bool(rows) and all(self.excess_of(row) is None for row in rows)


@dataclass(frozen=True, slots=True)
class Fitted:
    """Rows within the limits, and what became of the others, as sentences."""

    rows: list[EncodedRow]
    warnings: list[str]


def fit_rows(
    conversations: Sequence[Conversation],
    encoded: Sequence[Sequence[EncodedRow]],
    limits: Limits,
    when_too_long: WhenTooLong,
    encode: Encode,
    kind: str,
) -> Fitted:
    """Return the rows of conversations within the limits; `encoded` has those of each conversation.

    `kind` names the rows in the sentences. Raises `DataError` with `error` for the first that is too long.
    """
    kept: list[EncodedRow] = []
    left_out: dict[str, list[Excess]] = {}
    num_remade, num_rows_of_remade = 0, 0
    for conversation, rows in zip(conversations, encoded, strict=True):
        too_long = [excess for row in rows if (excess := limits.excess_of(row))]
        if not too_long:
            kept += rows
            continue
        if when_too_long == "error":
            raise _refusal(conversation, too_long[0])
        remade = _REMAKE[when_too_long](conversation, limits, encode)
        if remade:
            num_remade += 1
            num_rows_of_remade += len(remade)
        else:
            remade = [row for row in rows if limits.excess_of(row) is None]
            for excess in too_long:
                left_out.setdefault(excess.setting, []).append(excess)
        kept += remade
    num_rows = sum(map(len, encoded))
    warnings = [_say_left_out(found, num_rows, kind) for found in left_out.values()]
    if num_remade:
        how = (
            "with a shorter prompt" if when_too_long == "truncate_prompt" else f"as {num_rows_of_remade} rows"
        )
        warnings.append(
            f"{num_remade} of {num_rows} {kind} rows are too long and are taken {how} "
            f"(dataset.when_too_long: {when_too_long})"
        )
    return Fitted(kept, warnings)


def _say_left_out(found: Sequence[Excess], num_rows: int, kind: str) -> str:
    setting, longest = found[0].setting, max(excess.num_tokens for excess in found)
    return (
        f"{len(found)} of {num_rows} {kind} rows are too long and left out: the longest has {longest} "
        f"tokens, and {setting} is {found[0].limit} (data_preprocessing.{setting})"
    )


def _refusal(conversation: Conversation, excess: Excess) -> DataError:
    return DataError(
        f"the row has {excess.num_tokens} tokens, and {excess.setting} is {excess.limit}",
        where=f"row {conversation.row_number}",
        remedy=f"Raise data_preprocessing.{excess.setting}, shorten the row, or set dataset.when_too_long.",
    )


def _leave_out(_: Conversation, __: Limits, ___: Encode) -> list[EncodedRow]:
    return []


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
    "drop": _leave_out,
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
