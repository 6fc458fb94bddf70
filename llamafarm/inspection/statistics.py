"""A data file in figures: lengths in tokens, what is trained on, repeats, and oddities of the text.

One pass, with a few bytes a row: lengths and the hash of each row's key.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from llamafarm.data.conversation import Conversation
from llamafarm.data.encoding.encode import EncodedRow
from llamafarm.data.selection.corpus import conversation_key
from llamafarm.data.selection.oddities import TEXT_ODDITIES

_MOST_ROWS_NAMED = 5
_PERCENTILES = (5, 25, 50, 75, 95, 99)


@dataclass(slots=True)
class Oddity:
    """Rows with something odd: how many, and the first of them."""

    num_rows: int = 0
    first_rows: list[int] = field(default_factory=list)

    def add(self, row_number: int) -> None:
        """Count a row."""
        self.num_rows += 1
        if len(self.first_rows) < _MOST_ROWS_NAMED:
            self.first_rows.append(row_number)


@dataclass(slots=True)
class Statistics:
    """The figures of a file. Lengths are in tokens, one for each row that is trained on."""

    num_rows: int
    lengths: array[int]
    supervised: array[int]
    oddities: dict[str, Oddity]

    @property
    def num_tokens(self) -> int:
        """Return the tokens of all rows."""
        return sum(self.lengths)

    @property
    def supervised_share(self) -> float:
        """Return which part of the tokens is trained on."""
        return sum(self.supervised) / max(self.num_tokens, 1)

    def percentiles(self) -> dict[str, int]:
        """Return the shortest, the longest, and the usual percentiles between."""
        lengths = np.asarray(self.lengths)
        between = {f"{percent} %": int(np.percentile(lengths, percent)) for percent in _PERCENTILES}
        return {"shortest": int(lengths.min()), **between, "longest": int(lengths.max())}

    def histogram(self, most_bins: int = 10) -> list[tuple[int, int, int]]:
        """Return bins as (shortest, longest, rows), of equal width but for the last; all rows are in one."""
        lengths = np.asarray(self.lengths)
        shortest, longest = int(lengths.min()), int(lengths.max())
        width = -(-(longest - shortest + 1) // most_bins)
        starts = range(shortest, longest + 1, width)
        counts, _ = np.histogram(lengths, bins=[*starts, longest + 1])
        return [
            (start, min(start + width - 1, longest), int(count))
            for start, count in zip(starts, counts, strict=True)
        ]


def measure_rows(
    encoded: Iterable[tuple[Conversation, list[EncodedRow]]], max_length: int | None
) -> Statistics:
    """Return the figures of rows; those above `max_length` tokens are an oddity."""
    lengths, supervised = array("q"), array("q")
    seen: set[bytes] = set()
    oddities: dict[str, Oddity] = {name: Oddity() for name in (*_ROW_ODDITIES, *TEXT_ODDITIES)}
    num_rows = 0
    for conversation, rows in encoded:
        num_rows += 1
        lengths.extend(row.num_tokens for row in rows)
        supervised.extend(row.num_supervised_tokens for row in rows)
        key = blake2b(
            repr(conversation_key(conversation)).encode("utf-8", "replace"), digest_size=12
        ).digest()
        found = {
            "repeats an earlier row": key in seen,
            "longer than max_length": max_length is not None
            and any(row.num_tokens > max_length for row in rows),
            "nothing to train on": not any(row.num_supervised_tokens for row in rows),
        }
        seen.add(key)
        texts = [message.content for message in conversation.messages]
        found |= {name: any(map(is_odd, texts)) for name, is_odd in TEXT_ODDITIES.items()}
        for name, is_there in found.items():
            if is_there:
                oddities[name].add(conversation.row_number)
    return Statistics(num_rows, lengths, supervised, oddities)


def _hash_of(conversation: Conversation) -> bytes:
    return blake2b(repr(conversation_key(conversation)).encode("utf-8", "replace"), digest_size=12).digest()


_ROW_ODDITIES = ("repeats an earlier row", "longer than max_length", "nothing to train on")
