"""A row in pieces of text: which of them are trained on, and which are special tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llamafarm.data.encoding.rows import EncodedRow

# What a decoder gives for a character of which bytes are missing yet.
_INCOMPLETE = "\ufffd"


@dataclass(frozen=True, slots=True)
class Piece:
    """The text of one token, or of several where a character spans them."""

    text: str
    is_trained: bool
    is_special: bool
    num_tokens: int = 1


def split_into_pieces(row: EncodedRow, tokenizer: Any) -> Iterator[Piece]:
    """Yield a row's text piece by piece: together it is what the tokenizer makes of all ids."""
    special_ids = set(tokenizer.all_special_ids)
    token_ids = row.token_ids_T.tolist()

    def decode(start: int, end: int) -> str:
        text: str = tokenizer.decode(
            token_ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    # Decoders treat a first token otherwise (a blank before it may go), so each is decoded after others.
    context, start = 0, 0
    for end in range(1, len(token_ids) + 1):
        before, through = decode(context, start), decode(context, end)
        is_last = end == len(token_ids)
        if through.endswith(_INCOMPLETE) and not is_last and token_ids[end - 1] not in special_ids:
            continue
        yield Piece(
            text=through[len(before) :],
            is_trained=bool(row.is_supervised_T[end - 1]),
            is_special=token_ids[end - 1] in special_ids,
            num_tokens=end - start,
        )
        context, start = start, end


def merge_pieces(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yield runs of pieces that are alike as one; special tokens stay by themselves."""
    run: Piece | None = None
    for piece in pieces:
        if run and not (run.is_special or piece.is_special) and run.is_trained == piece.is_trained:
            num_tokens = run.num_tokens + piece.num_tokens
            run = Piece(run.text + piece.text, run.is_trained, False, num_tokens)
            continue
        if run:
            yield run
        run = piece
    if run:
        yield run
