"""Rows that are nearly the same, found by MinHash and then compared exactly.

A row is the set of its shingles: three words in a row, or five characters where a language has no blanks.
Two rows are as alike as the share of shingles that both have (Jaccard). MinHash (Broder, 1997) with bands
finds whom to compare with; no pair below the threshold is ever called alike. Hashes are fixed, so that the
result is the same on every platform.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from llamafarm.data.conversation import Conversation

_NUM_HASHES = 60
_SHINGLE_WORDS, _SHINGLE_CHARACTERS = 3, 5
# A text with longer words than this in the mean has no blanks between them.
_LONGEST_MEAN_WORD = 20
# Of pairs at the threshold, at least so many are compared.
_LEAST_RECALL = 0.999

_random = np.random.Generator(np.random.PCG64(20240607))
_FACTORS = _random.integers(1, 2**63, _NUM_HASHES, dtype=np.uint64) | np.uint64(1)
_ADDENDS = _random.integers(0, 2**63, _NUM_HASHES, dtype=np.uint64)
_MIX = np.uint64(0x9E3779B97F4A7C15)


class NearDuplicates:
    """The rows seen so far, of each that is new its shingles: some hundred bytes a row.

    `threshold` is the least share of common shingles, 0.5 to 1.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._rows_of_band = _rows_of_band(threshold)
        self._bands: list[dict[bytes, list[int]]] = [{} for _ in range(_NUM_HASHES // self._rows_of_band)]
        self._shingles: dict[int, NDArray[np.uint64]] = {}
        self._num_seen = 0

    def add(self, conversation: Conversation) -> int:
        """Return the number of the first row that this one is nearly the same as: its own if it is new.

        Rows are numbered from 0 as they are added.
        """
        number = self._num_seen
        self._num_seen += 1
        shingles = _shingles_of(_text_of(conversation))
        keys = self._keys_of(shingles)
        first = self._find(shingles, keys)
        if first is not None:
            return first
        self._shingles[number] = shingles
        for band, key in zip(self._bands, keys, strict=True):
            band.setdefault(key, []).append(number)
        return number

    def add_if_new(self, conversation: Conversation) -> bool:
        """Return whether a row is not nearly the same as an earlier one; if so it is one of those now."""
        number = self._num_seen
        return self.add(conversation) == number

    def find(self, conversation: Conversation) -> int | None:
        """Return the number of the first row that this one is nearly the same as, and keep nothing."""
        shingles = _shingles_of(_text_of(conversation))
        return self._find(shingles, self._keys_of(shingles))

    def _keys_of(self, shingles: NDArray[np.uint64]) -> list[bytes]:
        size = self._rows_of_band
        signature = _signature_of(shingles)
        return [signature[start : start + size].tobytes() for start in range(0, _NUM_HASHES, size)]

    def _find(self, shingles: NDArray[np.uint64], keys: list[bytes]) -> int | None:
        candidates = {
            number for band, key in zip(self._bands, keys, strict=True) for number in band.get(key, ())
        }
        for number in sorted(candidates):
            other = self._shingles[number]
            num_common = len(np.intersect1d(shingles, other, assume_unique=True))
            if num_common >= self._threshold * (len(shingles) + len(other) - num_common):
                return number
        return None


def group_near_duplicates(conversations: Iterable[Conversation], threshold: float) -> list[int]:
    """Return for each row the place of the first that it is nearly the same as; its own where it is new."""
    seen = NearDuplicates(threshold)
    return [seen.add(conversation) for conversation in conversations]


def _rows_of_band(threshold: float) -> int:
    """Return the longest bands with which a pair at the threshold is hardly ever missed."""
    sizes = [size for size in range(1, _NUM_HASHES + 1) if _NUM_HASHES % size == 0]
    return max(size for size in sizes if 1 - (1 - threshold**size) ** (_NUM_HASHES // size) >= _LEAST_RECALL)


def _text_of(conversation: Conversation) -> str:
    return " \x1f ".join(f"{message.content} {message.input}" for message in conversation.messages).casefold()


def _shingles_of(text: str) -> NDArray[np.uint64]:
    """Return the hashes of a text's shingles, each once, sorted; never empty."""
    parts: list[str] = text.split()
    size = _SHINGLE_WORDS
    if len(text) > _LONGEST_MEAN_WORD * max(len(parts), 1):
        parts, size = list("".join(parts)), _SHINGLE_CHARACTERS
    hashes = np.fromiter(
        (zlib.crc32(part.encode("utf-8", "replace")) for part in parts), np.uint64, len(parts)
    )
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
