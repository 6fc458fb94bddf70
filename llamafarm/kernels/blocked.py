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
# The weights of attention are kept for the backward pass up to here, and computed again beyond.
KEPT_UP_TO_TOKENS = 512


def attend_in_blocks(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    document_lengths: Sequence[int],
    scores: Scores,
) -> torch.Tensor:
    """Return causal attention within documents, with axes (H, T, D), token by token in memory.

    Raises `ValueError` if the lengths are not those of the pack.
    """
    if sum(document_lengths) != query_HTD.shape[1]:
        raise ValueError(f"{query_HTD.shape[1]} tokens of documents that have {sum(document_lengths)}")
    inputs: tuple[torch.Tensor, ...] = (query_HTD, key_KTD, value_KTD)
    if torch.is_autocast_enabled("cpu"):  # which leaves rotated queries in fp32 beside values in 16 bits
        inputs = tuple(one.to(torch.get_autocast_dtype("cpu")) for one in inputs)
    with torch.autocast("cpu", enabled=False):
        attended_HTD: torch.Tensor = _BlockedAttention.apply(  # type: ignore[no-untyped-call]
            *inputs, document_lengths, scores
        )
    return attended_HTD


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries from `start` to `end` of a document, and its keys from `first_key` to `end`."""

    start: int
    end: int
    first_key: int


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
    ) -> torch.Tensor:
        num_groups = query_HTD.shape[0] // key_KTD.shape[0]
        queries = _split(query_HTD, document_lengths, num_groups, scores.scale)
        keys, values = _split(key_KTD, document_lengths), _split(value_KTD, document_lengths)
        attended = _Joined(query_HTD, document_lengths, num_groups)
        is_trained = any(ctx.needs_input_grad[:3])
        kept = []
        for query_KRD, key_KND, value_KND in zip(queries, keys, values, strict=True):
            length = key_KND.shape[1]
            for block in _blocks_of(length, scores.sliding_window):
                weights_KRC = _attention_weights(query_KRD, key_KND, block, scores, num_groups)
                attended.add(torch.bmm(weights_KRC, value_KND[:, block.first_key : block.end]))
                if is_trained and length <= KEPT_UP_TO_TOKENS:
                    kept.append(weights_KRC)
        ctx.save_for_backward(*queries, *keys, *values, *kept)
        ctx.document_lengths, ctx.scores, ctx.num_groups = document_lengths, scores, num_groups
        return attended.heads

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        lengths, scores, num_groups = ctx.document_lengths, ctx.scores, ctx.num_groups
        saved = iter(ctx.saved_tensors)
        queries, keys, values = ([next(saved) for _ in lengths] for _ in range(3))
        d_query = _Joined(gradients[0], lengths, num_groups, scores.scale)
        d_key = _Joined(gradients[0][::num_groups], lengths)
        d_value = _Joined(gradients[0][::num_groups], lengths)
        d_outputs = _split(gradients[0], lengths, num_groups)
        for query_KRD, key_KND, value_KND, d_output_KRD in zip(queries, keys, values, d_outputs, strict=True):
            length = key_KND.shape[1]
            d_key_KND, d_value_KND = torch.zeros_like(key_KND), torch.zeros_like(value_KND)
            for block in _blocks_of(length, scores.sliding_window):
                if length <= KEPT_UP_TO_TOKENS:
                    weights_KRC = next(saved)
                else:
                    weights_KRC = _attention_weights(query_KRD, key_KND, block, scores, num_groups)
                rows = slice(block.start * num_groups, block.end * num_groups)
                seen = slice(block.first_key, block.end)
                d_output = d_output_KRD[:, rows]
                d_value_KND[:, seen].baddbmm_(weights_KRC.transpose(1, 2), d_output)
                d_weights_KRC = torch.bmm(d_output, value_KND[:, seen].transpose(1, 2))
                d_scores_KRC = torch._softmax_backward_data(d_weights_KRC, weights_KRC, -1, weights_KRC.dtype)
                if scores.softcap is not None:
                    d_scores_KRC *= _slope_of_cap(query_KRD[:, rows], key_KND[:, seen], scores.softcap)
                d_query.add(torch.bmm(d_scores_KRC, key_KND[:, seen]))
                d_key_KND[:, seen].baddbmm_(d_scores_KRC.transpose(1, 2), query_KRD[:, rows])
            d_key.add(d_key_KND)
            d_value.add(d_value_KND)
        return d_query.heads, d_key.heads, d_value.heads, None, None


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


def _blocks_of(length: int, sliding_window: int | None) -> Iterator[_Block]:
    """Yield the blocks of a document's queries, in order."""
    size = length if length <= _WHOLE_UP_TO_TOKENS else BLOCK_TOKENS
    for start in range(0, length, size):
        first_key = 0
        if sliding_window is not None:
            first_key = max((start - sliding_window + 1) // _ALIGNMENT * _ALIGNMENT, 0)
        yield _Block(start, min(start + size, length), first_key)


def _attention_weights(
    query_KRD: torch.Tensor, key_KND: torch.Tensor, block: _Block, scores: Scores, num_groups: int
) -> torch.Tensor:
    """Return what each query of a block gives to each key (K, R, C)."""
    key_KDC = key_KND[:, block.first_key : block.end].transpose(1, 2)
    scores_KRC = torch.bmm(query_KRD[:, block.start * num_groups : block.end * num_groups], key_KDC)
    if scores.softcap is not None:
        scores_KRC.div_(scores.softcap).tanh_().mul_(scores.softcap)
    num_tokens = block.end - block.start
    mask_RC = _future_mask(num_tokens, num_groups, query_KRD.dtype)
    # Keys before the block are seen by all of it; only those of the block itself may be ahead of a query.
    scores_KRC[:, :, -num_tokens:] += mask_RC
    if scores.sliding_window is not None and block.end - block.first_key > scores.sliding_window:
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
    query_R1 = torch.arange(block.start, block.end).repeat_interleave(num_groups)[:, None]
    far_RC = query_R1 - torch.arange(block.first_key, block.end)[None, :] >= sliding_window
    return torch.zeros(far_RC.shape, dtype=dtype).masked_fill_(far_RC, -torch.inf)
