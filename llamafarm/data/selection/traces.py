"""What selection needs to know of conversations, as arrays: some dozen bytes a row, and no text.

A million rows are chosen from these; the rows themselves have gone by one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from llamafarm.data.conversation import Conversation
from llamafarm.data.selection.near_duplicates import NUM_HASHES, Shingled, shingle
from llamafarm.data.selection.oddities import oddity_bits
from llamafarm.data.selection.quality import quality_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

Bits = TypeVar("Bits", np.uint8, np.uint16)

_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class TracesWanted:
    """Which traces are taken beside those of equal rows: of bad quality, of near-duplicates, of oddities."""

    of_quality: bool = False
    of_near_duplicates: bool = False
    of_oddities: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Traces:
    """Traces of conversations. Axes: N, conversations; H, hashes of a signature; S, shingles of all of them.

    Equal rows have equal `keys_N2`. What was not wanted has no bits set, H of 0, and no shingle.
    """

    row_numbers_N: NDArray[np.int64]
    keys_N2: NDArray[np.uint64]
    quality_N: NDArray[np.uint16]
    oddities_N: NDArray[np.uint8]
    signatures_NH: NDArray[np.uint32]
    num_shingles_N: NDArray[np.int32]
    shingles_S: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.row_numbers_N)

    @property
    def shingled(self) -> Shingled:
        """Return what near-duplicates are found by."""
        return Shingled(self.signatures_NH, self.num_shingles_N, self.shingles_S)

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by their names, each of which grows along its first axis."""
        return {column.name: getattr(self, column.name) for column in fields(self)}

    @classmethod
    def of_columns(cls, columns: Mapping[str, NDArray[np.generic]]) -> Traces:
        """Return the traces of `columns`, in which there may be others."""
        return cls(**{column.name: columns[column.name] for column in fields(cls)})  # type: ignore[arg-type]


def trace_conversations(conversations: Sequence[Conversation], wanted: TracesWanted) -> Traces:
    """Return the traces of conversations."""
    keys = b"".join(map(_hash_of_key, conversations))
    number = len(conversations)
    shingled = [shingle(conversation) for conversation in conversations if wanted.of_near_duplicates]
    shingles = [found for _, found in shingled]
    signatures_NH = np.zeros((number, NUM_HASHES if wanted.of_near_duplicates else 0), np.uint32)
    for place, (signature, _) in enumerate(shingled):
        signatures_NH[place] = signature
    return Traces(
        np.array([conversation.row_number for conversation in conversations], np.int64),
        np.frombuffer(keys, "<u8").reshape(number, _KEY_BYTES // 8),
        _bits(conversations, quality_bits if wanted.of_quality else None, np.uint16),
        _bits(conversations, oddity_bits if wanted.of_oddities else None, np.uint8),
        signatures_NH,
        np.array([len(found) for found in shingles] or np.zeros(number), np.int32),
        np.concatenate(shingles) if shingles else np.zeros(0, np.uint32),
    )


def conversation_key(conversation: Conversation) -> Hashable:
    """Return what makes two rows duplicates: equal turns, but for case and white space, and equal tools."""
    turns = tuple(
        (message.role, " ".join(f"{message.content} {message.input}".casefold().split()))
        for message in conversation.messages
    )
    extras = [message.extras for message in conversation.messages]
    if not any(extras) and not conversation.tools:
        return turns
    return turns, json.dumps([extras, conversation.tools], sort_keys=True, default=str)


def first_of_repeats(keys_N2: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return for each row the place of the first that is equal to it; its own where it is new."""
    order = np.lexsort((np.arange(len(keys_N2)), keys_N2[:, 1], keys_N2[:, 0]))
    in_order = keys_N2[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (in_order[1:] != in_order[:-1]).any(axis=1)
    first_N = np.empty(len(order), np.int64)
    first_N[order] = order[is_first][np.cumsum(is_first) - 1]
    return first_N


def _hash_of_key(conversation: Conversation) -> bytes:
    key = repr(conversation_key(conversation)).encode("utf-8", "replace")
    return blake2b(key, digest_size=_KEY_BYTES).digest()


def _bits(
    conversations: Sequence[Conversation], bits_of: Callable[[Conversation], int] | None, dtype: type[Bits]
) -> NDArray[Bits]:
    if bits_of is None:
        return np.zeros(len(conversations), dtype)
    return np.fromiter(map(bits_of, conversations), dtype, len(conversations))
