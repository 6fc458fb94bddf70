r"""Rows to packs: documents laid end to end without padding, with their boundaries.

An optimizer step is a set of rows; how they are cut into packs follows from memory and changes no
mathematics. A pack of two documents, S marking the positions whose next token is trained on:

    token_ids     a0 a1 a2 a3 b0 b1 b2
    position_ids   0  1  2  3  0  1  2
    S                 ^  ^        ^         predicting a2, a3 and b2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llamafarm.data.encoding.encode import EncodedRow


@dataclass(frozen=True, slots=True)
class Pack:
    """Documents end to end. Axes: T, tokens; S, supervised positions.

    `row_indices` name the documents' rows, in order, by their index in the list that was packed.
    """

    token_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    supervised_positions_S: torch.Tensor
    targets_S: torch.Tensor
    document_lengths: tuple[int, ...]
    row_indices: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Return the pack's length in tokens."""
        return len(self.token_ids_T)

    @property
    def num_supervised_tokens(self) -> int:
        """Return how many tokens of the pack are trained on."""
        return len(self.targets_S)

    def to(self, device: torch.device) -> Pack:
        """Return the pack with its tensors on `device`."""
        return Pack(
            self.token_ids_T.to(device),
            self.position_ids_T.to(device),
            self.supervised_positions_S.to(device),
            self.targets_S.to(device),
            self.document_lengths,
            self.row_indices,
        )


def pack_rows(
    rows: Sequence[EncodedRow],
    row_indices: Sequence[int],
    max_pack_tokens: int,
    max_pack_rows: int | None = None,
) -> list[Pack]:
    """Pack the rows that `row_indices` name into packs of at most so many tokens, and rows if that is given.

    Best fit, longest first; a row that is longer than a pack gets one of its own. The same lengths always
    give the same packs.
    """
    lengths = [rows[index].num_tokens for index in row_indices]
    return [
        build_pack([rows[row_indices[place]] for place in group], [row_indices[place] for place in group])
        for group in _group_by_best_fit(lengths, max_pack_tokens, max_pack_rows)
    ]


def build_pack(rows: Sequence[EncodedRow], row_indices: Sequence[int]) -> Pack:
    """Lay rows end to end as one pack."""
    lengths = [row.num_tokens for row in rows]
    token_ids_T = np.concatenate([row.token_ids_T for row in rows]).astype(np.int64)
    is_supervised_T = np.concatenate([row.is_supervised_T for row in rows])
    starts = np.cumsum([0, *lengths[:-1]])
    # Nothing in its own document comes before a first token, so no position predicts it.
    is_supervised_T[starts] = False
    targets_at_S = np.flatnonzero(is_supervised_T)
    return Pack(
        token_ids_T=torch.from_numpy(token_ids_T),
        position_ids_T=torch.cat([torch.arange(length) for length in lengths]),
        supervised_positions_S=torch.from_numpy(targets_at_S - 1),
        targets_S=torch.from_numpy(token_ids_T[targets_at_S]),
        document_lengths=tuple(lengths),
        row_indices=tuple(row_indices),
    )


def _group_by_best_fit(
    lengths: Sequence[int], max_pack_tokens: int, max_pack_rows: int | None
) -> list[list[int]]:
    groups: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        fitting = [index for index, free in enumerate(room) if free >= lengths[place]]
        if fitting:
            best = min(fitting, key=lambda index: (room[index], index))
        else:
            best = len(groups)
            groups.append([])
            room.append(max_pack_tokens)
        groups[best].append(place)
        room[best] -= lengths[place]
        if len(groups[best]) == max_pack_rows:
            room[best] = 0
    return groups
