"""Attention on a processor, written by hand: document by document, long ones in blocks of queries.

Four things make it two to four times as fast as torch's own: the heads that share a key head are one matrix
product, a block of queries meets only the keys at or before it, the softmax runs once over a block in the
numbers of the inputs, and every product finds its factors in one piece. Documents are filled up to multiples
of `_ALIGNMENT` tokens, so that oneDNN, which compiles a kernel for every shape of 16-bit products, meets few.

Axes: H query heads, K key heads, G query heads for each of them, T tokens of the pack, N tokens of a document
filled up, D head size, R rows of queries (tokens times G), C keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from llamafarm.kernels.reference import Scores

_ALIGNMENT = 32
# A document up to here is one block: what its masked half costs, fewer calls and copies spare.
_WHOLE_UP_TO_TOKENS = 224
BLOCK_TOKENS = 128
# The weights of attention are kept for the backward pass where a query has so many keys at most, in the mean
# over its document, and computed again beyond.
KEYS_KEPT = 384


def attend_in_blocks(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    document_lengths: Sequence[int],
    scores: Scores,
    *,
    has_prefix: bool = False,
) -> torch.Tensor:
    """Return causal attention within documents, with axes (H, T, D), token by token in memory.

    With `has_prefix` the first document comes before every other one, which sees all of it. Raises
    `ValueError` if the lengths are not those of the pack.
    """
    if sum(document_lengths) != query_HTD.shape[1]:
        raise ValueError(f"{query_HTD.shape[1]} tokens of documents that have {sum(document_lengths)}")
    inputs: tuple[torch.Tensor, ...] = (query_HTD, key_KTD, value_KTD)
    if torch.is_autocast_enabled("cpu"):  # which leaves rotated queries in fp32 beside values in 16 bits
        inputs = tuple(one.to(torch.get_autocast_dtype("cpu")) for one in inputs)
    with torch.autocast("cpu", enabled=False):
        attended_HTD: torch.Tensor = _BlockedAttention.apply(  # type: ignore[no-untyped-call]
            *inputs, document_lengths, scores, has_prefix
        )
    return attended_HTD


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries from `start` to `end` of a document; the keys that they meet, those of a prefix counted in."""

    start: int
    end: int
    first_key: int
    end_key: int


class _BlockedAttention(torch.autograd.Function):
    """`attend_in_blocks`."""

    @staticmethod
    def forward(
        ctx: Any,
        query_HTD: torch.Tensor,
        key_KTD: torch.Tensor,
        value_KTD: torch.Tensor,
        document_lengths: Sequence[int],
        scores: Scores,
        has_prefix: bool,
    ) -> torch.Tensor:
        num_groups = query_HTD.shape[0] // key_KTD.shape[0]
        queries = _split(query_HTD, document_lengths, num_groups, scores.scale)
        keys, values = _split(key_KTD, document_lengths), _split(value_KTD, document_lengths)
        attended = _Joined(query_HTD, document_lengths, num_groups)
        is_trained = any(ctx.needs_input_grad[:3])
        ctx.prefix_tokens = document_lengths[0] if has_prefix else 0
        kept = []
        for place, query_KRD in enumerate(queries):
            key_KND, value_KND = (_with_prefix(heads, place, ctx.prefix_tokens) for heads in (keys, values))
            length, offset = keys[place].shape[1], key_KND.shape[1] - keys[place].shape[1]
            for block in _blocks_of(length, offset, scores.sliding_window):
                weights_KRC = _attention_weights(query_KRD, key_KND, block, scores, num_groups)
                attended.add(torch.bmm(weights_KRC, value_KND[:, block.first_key : block.end_key]))
                if is_trained and _keeps_weights(length, offset):
                    kept.append(weights_KRC)
        ctx.save_for_backward(*queries, *keys, *values, *kept)
        ctx.document_lengths, ctx.scores, ctx.num_groups = document_lengths, scores, num_groups
        return attended.heads

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        lengths, num_groups, prefix_tokens = ctx.document_lengths, ctx.num_groups, ctx.prefix_tokens
        saved = iter(ctx.saved_tensors)
        queries, keys, values = ([next(saved) for _ in lengths] for _ in range(3))
        d_query = _Joined(gradients[0], lengths, num_groups, ctx.scores.scale)
        d_keys: list[torch.Tensor] = []
        d_values: list[torch.Tensor] = []
        for place, d_output_KRD in enumerate(_split(gradients[0], lengths, num_groups)):
            key_KND, value_KND = (_with_prefix(heads, place, prefix_tokens) for heads in (keys, values))
            d_key_KND, d_value_KND = _document_backward(
                (queries[place], key_KND, value_KND, d_output_KRD), saved, ctx.scores, num_groups, d_query
            )
            offset = key_KND.shape[1] - keys[place].shape[1]
            for parts, part_KND in ((d_keys, d_key_KND), (d_values, d_value_KND)):
                if offset:
                    parts[0][:, :offset] += part_KND[:, :offset]
                # What many documents add to is summed in fp32.
                is_prefix = place == 0 and prefix_tokens > 0
                parts.append(part_KND.float() if is_prefix else part_KND[:, offset:])
        joined = []
        for parts in (d_keys, d_values):
            whole = _Joined(gradients[0][::num_groups], lengths)
            for part_KND in parts:
                whole.add(part_KND.to(gradients[0].dtype))
            joined.append(whole.heads)
        return d_query.heads, *joined, None, None, None


def _document_backward(
    tensors: tuple[torch.Tensor, ...],
    saved: Iterator[torch.Tensor],
    scores: Scores,
    num_groups: int,
    d_query: _Joined,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the keys and values that a document met; that of its queries goes to `d_query`.

    `saved` gives the weights of its blocks where they were kept.
    """
    query_KRD, key_KND, value_KND, d_output_KRD = tensors
    length = query_KRD.shape[1] // num_groups
    offset = key_KND.shape[1] - length
    d_key_KND, d_value_KND = torch.zeros_like(key_KND), torch.zeros_like(value_KND)
    for block in _blocks_of(length, offset, scores.sliding_window):
        if _keeps_weights(length, offset):
            weights_KRC = next(saved)
        else:
            weights_KRC = _attention_weights(query_KRD, key_KND, block, scores, num_groups)
        rows = slice(block.start * num_groups, block.end * num_groups)
        seen = slice(block.first_key, block.end_key)
        d_output = d_output_KRD[:, rows]
        d_value_KND[:, seen].baddbmm_(weights_KRC.transpose(1, 2), d_output)
        d_weights_KRC = torch.bmm(d_output, value_KND[:, seen].transpose(1, 2))
        d_scores_KRC = torch._softmax_backward_data(d_weights_KRC, weights_KRC, -1, weights_KRC.dtype)
        if scores.softcap is not None:
            d_scores_KRC *= _slope_of_cap(query_KRD[:, rows], key_KND[:, seen], scores.softcap)
        d_query.add(torch.bmm(d_scores_KRC, key_KND[:, seen]))
        d_key_KND[:, seen].baddbmm_(d_scores_KRC.transpose(1, 2), query_KRD[:, rows])
    return d_key_KND, d_value_KND


def _with_prefix(documents: Sequence[torch.Tensor], place: int, prefix_tokens: int) -> torch.Tensor:
    """Return what the queries of a document meet: itself, after the first one if that is a prefix."""
    if not prefix_tokens or place == 0:
        return documents[place]
    return torch.cat((documents[0][:, :prefix_tokens], documents[place]), dim=1)


def _keeps_weights(length: int, offset: int) -> bool:
    mean_keys = length if length <= _WHOLE_UP_TO_TOKENS else (length + BLOCK_TOKENS) // 2
    return offset + mean_keys <= KEYS_KEPT


def _split(
    heads_HTD: torch.Tensor, document_lengths: Sequence[int], num_groups: int = 1, factor: float = 1.0
) -> list[torch.Tensor]:
    """Return the heads times `factor` of each document, (K, N * G, D) in one piece, filled up with zeros."""
    num_heads, num_tokens, size = heads_HTD.shape
    heads_KTGD = heads_HTD.view(-1, num_groups, num_tokens, size).transpose(1, 2)
    documents, taken = [], 0
    for length in document_lengths:
        filled = _filled_up(length)
        document_KNGD = heads_HTD.new_empty(num_heads // num_groups, filled, num_groups, size)
        torch.mul(heads_KTGD[:, taken : taken + length], factor, out=document_KNGD[:, :length])
        document_KNGD[:, length:] = 0
        documents.append(document_KNGD.view(-1, filled * num_groups, size))
        taken += length
    return documents


class _Joined:
    """Heads of a pack (H, T, D) that documents, or blocks of them in order, are written into."""

    def __init__(
        self, like_HTD: torch.Tensor, lengths: Sequence[int], num_groups: int = 1, factor: float = 1.0
    ) -> None:
        num_heads, num_tokens, size = like_HTD.shape
        self._heads_TKGD = like_HTD.new_empty(num_tokens, num_heads // num_groups, num_groups, size)
        self._num_groups, self._factor = num_groups, factor
        self._lengths = iter(lengths)
        self._taken, self._left, self._left_filled = 0, 0, 0

    def add(self, block_KRD: torch.Tensor) -> None:
        """Write the next block, without what fills its document up."""
        if not self._left_filled:
            self._left = next(self._lengths)
            self._left_filled = _filled_up(self._left)
        block_NKGD = block_KRD.view(len(block_KRD), -1, self._num_groups, block_KRD.shape[-1]).transpose(0, 1)
        self._left_filled -= len(block_NKGD)
        num_real = min(len(block_NKGD), self._left)
        target = self._heads_TKGD[self._taken : self._taken + num_real]
        torch.mul(block_NKGD[:num_real], self._factor, out=target)
        self._taken += num_real
        self._left -= num_real

    @property
    def heads(self) -> torch.Tensor:
        """Return what was written (H, T, D)."""
        return self._heads_TKGD.flatten(1, 2).transpose(0, 1)


def _filled_up(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _blocks_of(length: int, offset: int, sliding_window: int | None) -> Iterator[_Block]:
    """Yield the blocks of a document's queries, in order; `offset` tokens come before it."""
    size = length if length <= _WHOLE_UP_TO_TOKENS else BLOCK_TOKENS
    for start in range(0, length, size):
        first_key = 0
        if sliding_window is not None:
            first_key = max((offset + start - sliding_window + 1) // _ALIGNMENT * _ALIGNMENT, 0)
        end = min(start + size, length)
        yield _Block(start, end, first_key, offset + end)


def _attention_weights(
    query_KRD: torch.Tensor, key_KND: torch.Tensor, block: _Block, scores: Scores, num_groups: int
) -> torch.Tensor:
    """Return what each query of a block gives to each key (K, R, C)."""
    key_KDC = key_KND[:, block.first_key : block.end_key].transpose(1, 2)
    scores_KRC = torch.bmm(query_KRD[:, block.start * num_groups : block.end * num_groups], key_KDC)
    if scores.softcap is not None:
        scores_KRC.div_(scores.softcap).tanh_().mul_(scores.softcap)
    num_tokens = block.end - block.start
    mask_RC = _future_mask(num_tokens, num_groups, query_KRD.dtype)
    # Keys before the block are seen by all of it; only those of the block itself may be ahead of a query.
    scores_KRC[:, :, -num_tokens:] += mask_RC
    if scores.sliding_window is not None and block.end_key - block.first_key > scores.sliding_window:
        scores_KRC += _past_mask(block, scores.sliding_window, num_groups, query_KRD.dtype)
    return torch.softmax(scores_KRC, dim=-1, out=scores_KRC)


def _slope_of_cap(query_KRD: torch.Tensor, key_KCD: torch.Tensor, softcap: float) -> torch.Tensor:
    """Return the derivative of the bounded scores by the unbounded ones, from the scores anew."""
    scores_KRC = torch.bmm(query_KRD, key_KCD.transpose(1, 2)).div_(softcap).tanh_()
    return scores_KRC.square_().neg_().add_(1)


@lru_cache(maxsize=64)
def _future_mask(num_tokens: int, num_groups: int, dtype: torch.dtype) -> torch.Tensor:
    """Return -inf where a key comes after the query of its row, else 0."""
    ahead_RC = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu_(1).repeat_interleave(num_groups, 0)
    return torch.zeros(ahead_RC.shape, dtype=dtype).masked_fill_(ahead_RC, -torch.inf)


def _past_mask(block: _Block, sliding_window: int, num_groups: int, dtype: torch.dtype) -> torch.Tensor:
    """Return -inf where a key is too far before the query of its row, else 0."""
    offset = block.end_key - block.end
    query_R1 = torch.arange(block.start, block.end).repeat_interleave(num_groups)[:, None] + offset
    far_RC = query_R1 - torch.arange(block.first_key, block.end_key)[None, :] >= sliding_window
    return torch.zeros(far_RC.shape, dtype=dtype).masked_fill_(far_RC, -torch.inf)
