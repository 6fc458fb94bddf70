"""Rows as the model sees them: one, and very many of them over arrays that may lie on a disk.

A token is kept with its mark as one number: its id where it is trained on, else the id's complement, which
is negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Tokens that are looked at in one go: some 16 MiB.
_TOKENS_AT_ONCE = 4 * 2**20
_MOST_IDS_OF_16_BITS = 2**15


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row as the model sees it. Axes: T, its tokens. `is_supervised_T` marks the tokens trained on."""

    token_ids_T: NDArray[np.int32]
    is_supervised_T: NDArray[np.bool_]
    row_number: int

    @property
    def num_tokens(self) -> int:
        """Return the row's length in tokens."""
        return len(self.token_ids_T)

    @property
    def num_supervised_tokens(self) -> int:
        """Return how many tokens are trained on. The first of a row never is: nothing predicts it."""
        return int(self.is_supervised_T[1:].sum())


@dataclass(frozen=True, slots=True)
class TokenWindow:
    """The tokens of some rows, as they lie. Axes: T, tokens; N, the rows.

    Row n of the window is row `indices_N[n]` of all and lies from `starts_N[n]` to `ends_N[n]`; there may be
    other rows between.
    """

    marked_ids_T: NDArray[np.signedinteger]
    indices_N: NDArray[np.int64]
    starts_N: NDArray[np.int64]
    ends_N: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRows(Sequence[EncodedRow]):
    """Rows, of each its figures at once and its tokens when asked for. Axes: N, rows.

    `sources` hold marked ids of rows end to end; row n is what `sources[source_N[n]]` has from `starts_N[n]`
    on.
    """

    sources: tuple[NDArray[np.signedinteger], ...]
    source_N: NDArray[np.uint8]
    starts_N: NDArray[np.int64]
    lengths_N: NDArray[np.int32]
    num_supervised_N: NDArray[np.int32]
    row_numbers_N: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[EncodedRow]) -> EncodedRows:
        """Return rows that are there one by one."""
        marked = [mark_ids(row.token_ids_T, row.is_supervised_T) for row in rows]
        return cls.lying_in(
            np.concatenate(marked) if marked else np.zeros(0, np.int32),
            np.array([row.num_tokens for row in rows], np.int32),
            np.array([row.num_supervised_tokens for row in rows], np.int32),
            np.array([row.row_number for row in rows], np.int64),
        )

    @classmethod
    def lying_in(
        cls,
        source: NDArray[np.signedinteger],
        lengths_N: NDArray[np.int32],
        num_supervised_N: NDArray[np.int32],
        row_numbers_N: NDArray[np.int64],
    ) -> EncodedRows:
        """Return rows that lie in one array from its beginning on."""
        starts_N = np.cumsum(lengths_N, dtype=np.int64) - lengths_N
        source_N = np.zeros(len(lengths_N), np.uint8)
        return cls((source,), source_N, starts_N, lengths_N, num_supervised_N, row_numbers_N)

    @classmethod
    def joined(cls, parts: Sequence[EncodedRows]) -> EncodedRows:
        """Return the rows of all parts, in order."""
        firsts = np.cumsum([0, *(len(part.sources) for part in parts[:-1])])
        return cls(
            tuple(source for part in parts for source in part.sources),
            np.concatenate(
                [part.source_N + np.uint8(first) for part, first in zip(parts, firsts, strict=True)]
            ),
            np.concatenate([part.starts_N for part in parts]),
            np.concatenate([part.lengths_N for part in parts]),
            np.concatenate([part.num_supervised_N for part in parts]),
            np.concatenate([part.row_numbers_N for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.lengths_N)

    @overload
    def __getitem__(self, place: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, place: slice) -> EncodedRows: ...
    def __getitem__(self, place: int | slice) -> EncodedRow | EncodedRows:
        if isinstance(place, slice):
            return self.select(np.arange(len(self))[place])
        start = self.starts_N[place]
        marked_T = np.asarray(self.sources[self.source_N[place]][start : start + self.lengths_N[place]])
        return EncodedRow(
            ids_of(marked_T).astype(np.int32, copy=False), marked_T >= 0, int(self.row_numbers_N[place])
        )

    def select(self, indices: NDArray[np.int64]) -> EncodedRows:
        """Return the rows at these places, in this order; a place may come more than once."""
        return EncodedRows(
            self.sources,
            self.source_N[indices],
            self.starts_N[indices],
            self.lengths_N[indices],
            self.num_supervised_N[indices],
            self.row_numbers_N[indices],
        )

    @property
    def num_tokens(self) -> int:
        """Return the tokens of all rows."""
        return int(self.lengths_N.sum(dtype=np.int64))

    @property
    def num_supervised_tokens(self) -> int:
        """Return how many tokens of all rows are trained on."""
        return int(self.num_supervised_N.sum(dtype=np.int64))

    def windows(self) -> Iterator[TokenWindow]:
        """Yield the tokens of all rows, some millions at a time, in the order in which they lie."""
        order = np.lexsort((self.starts_N, self.source_N))
        for number, source in enumerate(self.sources):
            indices = order[self.source_N[order] == number]
            starts, lengths = self.starts_N[indices], self.lengths_N[indices]
            first = 0
            while first < len(indices):
                begin = starts[first]
                last = max(int(np.searchsorted(starts, begin + _TOKENS_AT_ONCE)), first + 1)
                ends = starts[first:last] + lengths[first:last]
                yield TokenWindow(
                    _lying_between(source, int(begin), int(ends.max())),
                    indices[first:last],
                    starts[first:last] - begin,
                    ends - begin,
                )
                first = last


def mark_ids(token_ids_T: NDArray[np.int32], is_supervised_T: NDArray[np.bool_]) -> NDArray[np.signedinteger]:
    """Return each token with its mark as one number, for `ids_of`."""
    return np.where(is_supervised_T, token_ids_T, ~token_ids_T)


def ids_of(marked_T: NDArray[np.signedinteger]) -> NDArray[np.signedinteger]:
    """Return the token ids of marked ones."""
    return np.where(marked_T < 0, ~marked_T, marked_T)


def marked_dtype(num_ids: int) -> np.dtype[np.signedinteger]:
    """Return the smallest numbers that hold the marked ids of a vocabulary."""
    return np.dtype(np.int16 if num_ids <= _MOST_IDS_OF_16_BITS else np.int32)


def _lying_between(source: NDArray[np.signedinteger], start: int, end: int) -> NDArray[np.signedinteger]:
    if not isinstance(source, np.memmap) or source.filename is None:
        return source[start:end]
    # A map of its own, whose pages go when it does: else the whole file would count as this process's memory.
    place = source.offset + start * source.itemsize
    window: Any = np.memmap(source.filename, source.dtype, "r", place, (end - start,))
    return window  # type: ignore[no-any-return]
