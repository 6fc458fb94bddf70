"""Where the documents of a pack lie for `blocked` attention: those of a size together, in blocks of queries.

Documents are filled up to multiples of `ALIGNMENT` tokens, so that few sizes are left: oneDNN compiles a
kernel for every shape of 16-bit products.

Axes: H query heads, K key heads, G query heads for each of them, T tokens of the pack, D head size. Of a
group of documents: M documents, N tokens of each filled up, P places, M times N, B key heads times documents,
C keys. E is G times D.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch

ALIGNMENT = 32
# A document up to here is one block: what its masked half costs, fewer calls and copies spare.
_WHOLE_UP_TO_TOKENS = 224
BLOCK_TOKENS = 128
# The weights of attention are kept for the backward pass where a query has so many keys at most, in the mean
# over its document, and computed again beyond.
KEYS_KEPT = 384


@dataclass(frozen=True, slots=True)
class Block:
    """Queries from `start` to `end` of a document; the keys that they meet, those of a prefix counted in."""

    start: int
    end: int
    first_key: int
    end_key: int


@dataclass(frozen=True, slots=True)
class Group:
    """Documents that have the same size once they are filled up.

    `tokens` has the token of the pack for each of their M * N places; those of the `fillers` among these
    places are any: no query of a document meets them, since they come after it.
    """

    num_tokens: int
    tokens: torch.Tensor
    fillers: torch.Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """The groups of a pack, and for each of its tokens its place in all of them end to end.

    With `prefix_tokens` the first group is the document that the others continue, and nothing else.
    """

    groups: tuple[Group, ...]
    places_T: torch.Tensor
    prefix_tokens: int

    @staticmethod
    @lru_cache(maxsize=4)  # every layer asks for its pack's
    def of(lengths: tuple[int, ...], has_prefix: bool) -> Layout:
        """Return the layout of documents of these lengths."""
        starts = [0, *accumulate(lengths)]
        alike: dict[tuple[bool, int], list[int]] = {}
        for document, length in enumerate(lengths):
            filled = -(-length // ALIGNMENT) * ALIGNMENT
            alike.setdefault((has_prefix and document == 0, filled), []).append(document)
        groups, places_T, num_places = [], torch.empty(starts[-1], dtype=torch.long), 0
        for (_, filled), documents in alike.items():
            tokens = torch.zeros(len(documents), filled, dtype=torch.long)
            fillers: list[int] = []
            for row, document in enumerate(documents):
                length, start = lengths[document], starts[document]
                tokens[row, :length] = torch.arange(start, start + length)
                fillers += range(row * filled + length, (row + 1) * filled)
                first = num_places + row * filled
                places_T[start : start + length] = torch.arange(first, first + length)
            groups.append(Group(filled, tokens.flatten(), torch.tensor(fillers, dtype=torch.long)))
            num_places += len(documents) * filled
        return Layout(tuple(groups), places_T, lengths[0] if has_prefix else 0)

    def spread(
        self, heads_HTD: torch.Tensor, num_groups: int, *, fills_with_zeros: bool = False
    ) -> list[torch.Tensor]:
        """Return the heads (H, T, D) of each group, (B, N * G, D) in one piece."""
        num_heads, num_tokens, size = heads_HTD.shape
        num_keys = num_heads // num_groups
        heads_TKE = heads_HTD.transpose(0, 1).reshape(num_tokens, num_keys, num_groups * size)
        spread = []
        for group in self.groups:
            # Choosing rows in one piece and turning them is three times as fast as choosing across.
            chosen_PKE = heads_TKE.index_select(0, group.tokens)
            if fills_with_zeros:
                chosen_PKE.index_fill_(0, group.fillers, 0)
            chosen_KPE = chosen_PKE.transpose(0, 1).contiguous()
            spread.append(chosen_KPE.view(-1, group.num_tokens * num_groups, size))
        return spread

    def gather(self, spread: Sequence[torch.Tensor], num_groups: int) -> torch.Tensor:
        """Return what `spread` took apart, without what fills documents up; token by token in memory."""
        size = spread[0].shape[-1]
        num_keys = len(spread[0]) * self.groups[0].num_tokens // len(self.groups[0].tokens)
        whole_KPE = torch.cat([one.reshape(num_keys, -1, num_groups * size) for one in spread], dim=1)
        heads_TKE = whole_KPE.transpose(0, 1).contiguous().index_select(0, self.places_T)
        return heads_TKE.view(len(heads_TKE), num_keys * num_groups, size).transpose(0, 1)

    def with_prefix(self, spread: Sequence[torch.Tensor], place: int) -> torch.Tensor:
        """Return the keys or values (B, C, D) that the queries of a group meet: after the prefix, if any."""
        own_BND = spread[place]
        if not self.prefix_tokens or place == 0:
            return own_BND
        prefix_KPD = spread[0][:, : self.prefix_tokens]
        return torch.cat((prefix_KPD.repeat_interleave(len(own_BND) // len(prefix_KPD), 0), own_BND), dim=1)

    def without_prefix(
        self, gradient_BCD: torch.Tensor, place: int, earlier: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Return the gradient of a group's own keys or values; that of the prefix is added to `earlier`."""
        if not self.prefix_tokens or place == 0:
            return gradient_BCD
        of_prefix_BPD = gradient_BCD[:, : self.prefix_tokens]
        num_keys = len(earlier[0])
        summed_KPD = of_prefix_BPD.reshape(num_keys, -1, *of_prefix_BPD.shape[1:]).sum(1, dtype=torch.float32)
        earlier[0][:, : self.prefix_tokens] += summed_KPD.to(gradient_BCD.dtype)
        return gradient_BCD[:, self.prefix_tokens :]

    def keeps_weights(self, place: int) -> bool:
        """Return whether a group's weights are kept for the backward pass."""
        length = self.groups[place].num_tokens
        offset = self.prefix_tokens if place else 0
        mean_keys = length if length <= _WHOLE_UP_TO_TOKENS else (length + BLOCK_TOKENS) // 2
        return offset + mean_keys <= KEYS_KEPT

    def blocks_of(self, place: int, sliding_window: int | None) -> Iterator[Block]:
        """Yield the blocks of a group's queries, in order."""
        length = self.groups[place].num_tokens
        offset = self.prefix_tokens if place else 0
        size = length if length <= _WHOLE_UP_TO_TOKENS else BLOCK_TOKENS
        for start in range(0, length, size):
            first_key = 0
            if sliding_window is not None:
                first_key = max((offset + start - sliding_window + 1) // ALIGNMENT * ALIGNMENT, 0)
            end = min(start + size, length)
            yield Block(start, end, first_key, offset + end)
