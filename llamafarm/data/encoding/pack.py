r"""Rows to packs: documents laid end to end without padding, with their boundaries.

An optimizer step is a set of rows; how they are cut into packs follows from memory and changes no
mathematics. A pack of two documents, S marking the positions whose next token is trained on:

    token_ids     a0 a1 a2 a3 b0 b1 b2
    position_ids   0  1  2  3  0  1  2
    S                 ^  ^        ^         predicting a2, a3 and b2

Packs are filled up to a multiple of `MULTIPLE` tokens by a last document that nobody sees or trains on:
products of other sizes take up to a third longer (in bf16 on a processor, 1,007 rows as long as 1,500).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING, overload

import numpy as np
import torch

from llamafarm.data.encoding.prefixes import SharedPrefix, find_shared_prefixes
from llamafarm.data.encoding.rows import EncodedRow, EncodedRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

MULTIPLE = 16
# The index in place of a row's for the document that fills a pack up.
_FILLER = -1


@dataclass(frozen=True, slots=True)
class Pack:
    """Documents end to end. Axes: T, tokens; S, supervised positions.

    `row_indices` name the documents' rows, in order, by their index in the list that was packed; -1 stands
    for a last document that fills the pack up. With
    `has_prefix` the first document is no row: it is what all rows of the pack begin with (see `prefixes`),
    and each row's document has the rest of it.
    """

    token_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    supervised_positions_S: torch.Tensor
    targets_S: torch.Tensor
    document_lengths: tuple[int, ...]
    row_indices: tuple[int, ...]
    has_prefix: bool = False

    @property
    def num_row_tokens(self) -> int:
        """Return the tokens of the pack's rows, a shared prefix counted for each."""
        num_rows = len(self.row_indices) - bool(self.num_fillers)
        num_saved = self.document_lengths[0] * (num_rows - 1) if self.has_prefix else 0
        return self.num_tokens - self.num_fillers + num_saved

    @property
    def num_fillers(self) -> int:
        """Return how many tokens fill the pack up."""
        return self.document_lengths[-1] if self.row_indices[-1] == _FILLER else 0

    @property
    def sum_of_squares(self) -> int:
        """Return the squared lengths of the documents, summed: twice the pairs that attention scores."""
        prefix = self.document_lengths[0] if self.has_prefix else 0
        squares = [(prefix + length) ** 2 - prefix**2 for length in self.document_lengths[self.has_prefix :]]
        return prefix**2 + sum(squares)

    @property
    def target_rows(self) -> NDArray[np.int64]:
        """Return of which row each supervised token is (S,)."""
        ends = np.cumsum(self.document_lengths)
        # The target stands one place after the position that predicts it.
        documents_S = np.searchsorted(ends, self.supervised_positions_S.cpu().numpy() + 1, side="right")
        rows_S: NDArray[np.int64] = np.array(self.row_indices, np.int64)[documents_S - self.has_prefix]
        return rows_S

    @property
    def num_tokens(self) -> int:
        """Return the pack's length in tokens, those that fill it up included."""
        return len(self.token_ids_T)

    @property
    def num_supervised_tokens(self) -> int:
        """Return how many tokens of the pack are trained on."""
        return len(self.targets_S)

    def filled_up(self) -> Pack:
        """Return the pack with as many tokens that `MULTIPLE` divides them."""
        num_fillers = -self.num_tokens % MULTIPLE
        if not num_fillers:
            return self
        return replace(
            self,
            token_ids_T=torch.cat((self.token_ids_T, self.token_ids_T.new_zeros(num_fillers))),
            # From 0 also after a prefix: what a table of positions has for sure.
            position_ids_T=torch.cat((self.position_ids_T, torch.arange(num_fillers))),
            document_lengths=(*self.document_lengths, num_fillers),
            row_indices=(*self.row_indices, _FILLER),
        )

    def to(self, device: torch.device) -> Pack:
        """Return the pack with its tensors on `device`."""
        return Pack(
            self.token_ids_T.to(device),
            self.position_ids_T.to(device),
            self.supervised_positions_S.to(device),
            self.targets_S.to(device),
            self.document_lengths,
            self.row_indices,
            self.has_prefix,
        )


class Packs(Sequence[Pack]):
    """Packs that are laid out when they are asked for; how many there are and how full is known before."""

    def __init__(
        self, rows: Sequence[EncodedRow], groups: Sequence[Sequence[int]], prefixes: Sequence[int]
    ) -> None:
        self._rows = rows
        self.groups = groups
        self._prefixes = prefixes

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, place: int) -> Pack: ...
    @overload
    def __getitem__(self, place: slice) -> Packs: ...
    def __getitem__(self, place: int | slice) -> Pack | Packs:
        if isinstance(place, slice):
            return Packs(self._rows, self.groups[place], self._prefixes[place])
        group = self.groups[place]
        pack = build_pack([self._rows[index] for index in group], group, self._prefixes[place])
        return pack.filled_up()

    def sizes(self) -> list[tuple[int, int, int]]:
        """Return the tokens of each pack, the supervised ones, and its documents' squared lengths, summed."""
        sizes = []
        for group, prefix in zip(self.groups, self._prefixes, strict=True):
            lengths, supervised = _figures_of(self._rows, group)
            squares, others = int((lengths.astype(np.int64) ** 2).sum()), len(group) - 1
            num_tokens = int(lengths.sum()) - prefix * others
            sizes.append((num_tokens, int(supervised.sum()), squares - prefix**2 * others))
        return sizes


def pack_rows(
    rows: Sequence[EncodedRow],
    row_indices: Sequence[int] | NDArray[np.int64],
    max_pack_tokens: int,
    max_pack_rows: int | None = None,
    *,
    shares_prefixes: bool = False,
) -> Packs:
    """Pack the rows that `row_indices` name into packs of at most so many tokens, and rows if that is given.

    Best fit, longest first; a row that is longer than a pack gets one of its own. The same lengths always
    give the same packs; no row is read before its pack is, unless the pack `shares_prefixes`: then rows that
    begin alike come together, after what they begin with.
    """
    indices = [int(index) for index in row_indices]
    shared = find_shared_prefixes(rows, indices) if shares_prefixes else [SharedPrefix(0, indices)]
    groups: list[list[int]] = []
    prefixes: list[int] = []
    for prefix in shared:
        lengths, _ = _figures_of(rows, prefix.row_indices)
        fitted = _group_by_best_fit(
            (lengths - prefix.num_tokens).tolist(), max_pack_tokens - prefix.num_tokens, max_pack_rows
        )
        for group in fitted:
            groups.append([prefix.row_indices[place] for place in group])
            prefixes.append(prefix.num_tokens if len(group) > 1 else 0)
    return Packs(rows, groups, prefixes)


def _figures_of(
    rows: Sequence[EncodedRow], indices: Sequence[int] | NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the tokens and the supervised tokens of some rows."""
    places = np.asarray(indices, np.int64)
    if isinstance(rows, EncodedRows):
        return rows.lengths_N[places], rows.num_supervised_N[places]
    chosen = [rows[index] for index in places]
    return (
        np.array([row.num_tokens for row in chosen], np.int32),
        np.array([row.num_supervised_tokens for row in chosen], np.int32),
    )


def build_pack(rows: Sequence[EncodedRow], row_indices: Sequence[int], prefix_tokens: int = 0) -> Pack:
    """Lay rows end to end as one pack; so many tokens that all of them begin with once, before them."""
    parts = [(row.token_ids_T[prefix_tokens:], row.is_supervised_T[prefix_tokens:]) for row in rows]
    if prefix_tokens:
        parts.insert(0, (rows[0].token_ids_T[:prefix_tokens], np.zeros(prefix_tokens, np.bool_)))
    lengths = [len(ids_T) for ids_T, _ in parts]
    token_ids_T = np.concatenate([ids_T for ids_T, _ in parts]).astype(np.int64)
    is_supervised_T = np.concatenate([marks_T for _, marks_T in parts])
    starts = np.cumsum([0, *lengths[:-1]])
    # Nothing in its own document comes before a first token, so no position predicts it.
    is_supervised_T[starts] = False
    offsets = [0] + [prefix_tokens] * (len(lengths) - 1)
    targets_at_S = np.flatnonzero(is_supervised_T)
    return Pack(
        token_ids_T=torch.from_numpy(token_ids_T),
        position_ids_T=torch.cat(
            [torch.arange(length) + offset for length, offset in zip(lengths, offsets, strict=True)]
        ),
        supervised_positions_S=torch.from_numpy(targets_at_S - 1),
        targets_S=torch.from_numpy(token_ids_T[targets_at_S]),
        document_lengths=tuple(lengths),
        row_indices=tuple(row_indices),
        has_prefix=prefix_tokens > 0,
    )


def _group_by_best_fit(
    lengths: Sequence[int], max_pack_tokens: int, max_pack_rows: int | None
) -> list[list[int]]:
    """Return groups of places; among the fullest groups with room enough the first one gets a row."""
    groups: list[list[int]] = []
    # The groups that have so much room, as heaps, and the rooms that there are, rising.
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        length = lengths[place]
        fitting = bisect_left(rooms, length)
        if fitting < len(rooms):
            room = rooms[fitting]
            group = heappop(with_room[room])
            if not with_room[room]:
                del with_room[room], rooms[fitting]
        else:
            room, group = max_pack_tokens, len(groups)
            groups.append([])
        groups[group].append(place)
        left = room - length
        if left > 0 and len(groups[group]) != max_pack_rows:
            if left not in with_room:
                with_room[left] = []
                insort(rooms, left)
            heappush(with_room[left], group)
    return groups
