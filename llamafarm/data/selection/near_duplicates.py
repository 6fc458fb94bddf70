"""Rows that are nearly the same, found by MinHash and then compared exactly.

A row is the set of its shingles: three words in a row, or five characters where a language has no blanks.
Two rows are as alike as the share of shingles that both have (Jaccard). MinHash (Broder, 1997) with bands
finds whom to compare with; no pair below the threshold is ever called alike. Hashes are fixed, so that the
result is the same on every platform.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llamafarm.data.conversation import Conversation

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_HASHES = 60
_SHINGLE_WORDS, _SHINGLE_CHARACTERS = 3, 5
# A text with longer words than this in the mean has no blanks between them.
_LONGEST_MEAN_WORD = 20
# Of pairs at the threshold, at least so many are compared.
_LEAST_RECALL = 0.999
# Rows whose signatures are looked at in one go.
_ROWS_AT_ONCE = 2**16

_random = np.random.Generator(np.random.PCG64(20240607))
_FACTORS = _random.integers(1, 2**63, NUM_HASHES, dtype=np.uint64) | np.uint64(1)
_ADDENDS = _random.integers(0, 2**63, NUM_HASHES, dtype=np.uint64)
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Shingled(NamedTuple):
    """Rows to compare: their signatures, and their shingles end to end. Axes as in `Traces`."""

    signatures_NH: NDArray[np.uint32]
    num_shingles_N: NDArray[np.int32]
    shingles_S: NDArray[np.uint32]


def shingle(conversation: Conversation) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return a row's signature, and its shingles' hashes, each once, rising; there is at least one."""
    hashes = _shingles_of(_text_of(conversation))
    return _signature_of(hashes), np.unique((hashes >> np.uint64(32)).astype(np.uint32))


def group_near_duplicates(
    parts: Sequence[Shingled], chosen: Sequence[NDArray[np.int64]], threshold: float
) -> list[int]:
    """Return for each row the place of the first that it is nearly the same as; its own where it is new.

    The rows are those of each part that are `chosen`, one part after the other, and places count in that
    order. Rows that are nearly the same as an earlier one are not compared with later ones. `threshold` is
    the least share of common shingles, 0.5 to 1.
    """
    size = _rows_of_band(threshold)
    pairs = list(zip(parts, chosen, strict=True))
    bands = [
        np.concatenate([_band_of(part.signatures_NH, rows, start, size) for part, rows in pairs])
        for start in range(0, NUM_HASHES, size)
    ]
    number = sum(map(len, chosen))
    first = list(range(number))
    shingles = _Shingles(parts, chosen)
    # Of rows that are new: their places, by what their bands hash to.
    seen: list[dict[int, list[int]]] = [{} for _ in bands]
    for place in np.flatnonzero(_share_a_band(bands, number)).tolist():
        keys = [int(band_N[place]) for band_N in bands]
        candidates = {other for band, key in zip(seen, keys, strict=True) for other in band.get(key, ())}
        found = next(
            (other for other in sorted(candidates) if shingles.are_alike(place, other, threshold)), None
        )
        if found is not None:
            first[place] = found
            continue
        for band, key in zip(seen, keys, strict=True):
            band.setdefault(key, []).append(place)
    return first


class _Shingles:
    """The shingles of chosen rows, read when two are compared."""

    def __init__(self, parts: Sequence[Shingled], chosen: Sequence[NDArray[np.int64]]) -> None:
        self._shingles = [part.shingles_S for part in parts]
        self._first_places = np.cumsum([0, *map(len, chosen)])
        self._ends = [
            np.cumsum(part.num_shingles_N, dtype=np.int64)[rows]
            for part, rows in zip(parts, chosen, strict=True)
        ]
        self._numbers = [part.num_shingles_N[rows] for part, rows in zip(parts, chosen, strict=True)]

    def are_alike(self, place: int, other: int, threshold: float) -> bool:
        """Return whether two rows have so large a share of their shingles in common."""
        one, two = self._at(place), self._at(other)
        num_common = len(np.intersect1d(one, two, assume_unique=True))
        return num_common >= threshold * (len(one) + len(two) - num_common)

    def _at(self, place: int) -> NDArray[np.uint32]:
        part = int(np.searchsorted(self._first_places, place, side="right")) - 1
        row = place - self._first_places[part]
        end = self._ends[part][row]
        return np.asarray(self._shingles[part][end - self._numbers[part][row] : end])


def _band_of(
    signatures_NH: NDArray[np.uint32], rows: NDArray[np.int64], start: int, size: int
) -> NDArray[np.uint64]:
    """Return what some columns of the chosen rows' signatures hash to, as one number each."""
    band_N = np.zeros(len(rows), np.uint64)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        some = slice(first, first + _ROWS_AT_ONCE)
        band_N[some] = _mixed(signatures_NH[rows[some], column] for column in range(start, start + size))
    return band_N


def _mixed(columns: Iterable[NDArray[np.uint32]]) -> NDArray[np.uint64]:
    mixed: NDArray[np.uint64] = np.zeros(1, np.uint64)
    for column in columns:
        mixed = (mixed + column + np.uint64(1)) * _MIX
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _share_a_band(bands: Sequence[NDArray[np.uint64]], number: int) -> NDArray[np.bool_]:
    """Return which rows have a band in common with another one."""
    shares_N = np.zeros(number, bool)
    for band_N in bands:
        order = np.argsort(band_N, kind="stable")
        is_same = band_N[order[1:]] == band_N[order[:-1]]
        shares_N[order[1:][is_same]] = True
        shares_N[order[:-1][is_same]] = True
    return shares_N


def _rows_of_band(threshold: float) -> int:
    """Return the longest bands with which a pair at the threshold is hardly ever missed."""
    sizes = [size for size in range(1, NUM_HASHES + 1) if NUM_HASHES % size == 0]
    return max(size for size in sizes if 1 - (1 - threshold**size) ** (NUM_HASHES // size) >= _LEAST_RECALL)


def _text_of(conversation: Conversation) -> str:
    return " \x1f ".join(f"{message.content} {message.input}" for message in conversation.messages).casefold()


def _shingles_of(text: str) -> NDArray[np.uint64]:
    """Return the hashes of a text's shingles, each once, sorted; never empty."""
    parts: list[str] = text.split()
    size = _SHINGLE_WORDS
    if len(text) > _LONGEST_MEAN_WORD * max(len(parts), 1):
        parts, size = list("".join(parts)), _SHINGLE_CHARACTERS
    hashes = np.fromiter(map(_hash_of_word, parts), np.uint64, len(parts))
    size = max(min(size, len(hashes)), 1)
    num_shingles = max(len(hashes) - size + 1, 1)
    mixed = np.zeros(num_shingles, np.uint64)
    for offset in range(min(size, len(hashes))):
        mixed = (mixed + hashes[offset : offset + num_shingles]) * _MIX
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def _signature_of(shingles: NDArray[np.uint64]) -> NDArray[np.uint32]:
    hashed = shingles[:, None] * _FACTORS + _ADDENDS
    smallest: NDArray[np.uint32] = (hashed >> np.uint64(32)).min(axis=0).astype(np.uint32)
    return smallest


@lru_cache(maxsize=2**16)
def _hash_of_word(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "replace"))
