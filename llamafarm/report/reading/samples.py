"""Rows of the training data, in pieces that show what was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llamafarm.report.reading.values import count_of, list_of, mapping_of, text_of

_MOST_CHARACTERS = 6000


@dataclass(frozen=True, slots=True)
class ShownPiece:
    """A stretch of text that is trained on or not; a special token is by itself."""

    text: str
    is_trained: bool
    is_special: bool


@dataclass(frozen=True, slots=True)
class MaskSample:
    """A row in pieces; `is_cut` where only its beginning was kept."""

    row: int | None
    num_tokens: int | None
    num_supervised_tokens: int | None
    is_cut: bool
    pieces: tuple[ShownPiece, ...]


def read_samples(value: Any) -> Iterator[MaskSample]:
    """Yield the rows of a list in JSON that have text to show."""
    for record in map(mapping_of, list_of(value)):
        pieces, is_cut = _read_pieces(record.get("pieces"))
        if pieces:
            yield MaskSample(
                count_of(record.get("row")),
                count_of(record.get("num_tokens")),
                count_of(record.get("num_supervised_tokens")),
                is_cut or record.get("is_cut") is True,
                pieces,
            )


def _read_pieces(value: Any) -> tuple[tuple[ShownPiece, ...], bool]:
    """Return a row's pieces up to the most characters that are shown, and whether that cut it."""
    pieces: list[ShownPiece] = []
    num_left = _MOST_CHARACTERS
    for record in map(mapping_of, list_of(value)):
        text = text_of(record.get("text"))
        if not text:
            continue
        if num_left <= 0:
            return tuple(pieces), True
        shown = text[:num_left]
        num_left -= len(text)
        pieces.append(ShownPiece(shown, record.get("is_trained") is True, record.get("is_special") is True))
    return tuple(pieces), num_left < 0
