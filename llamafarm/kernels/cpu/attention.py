"""Attention within documents by the compiled kernels, forward and gradient.

Axes: H query heads, K key heads, T tokens of the pack, D head size, P tokens of the prefix.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from llamafarm.kernels.cpu.choice import is_compiled
from llamafarm.kernels.cpu.library import call, has
from llamafarm.kernels.reference import Scores
from llamafarm.kernels.trial import Heads, is_as_the_twin

# Heads are read in vectors of at most so many numbers.
ALIGNMENT = 16
_TRIED_LENGTHS = (5, 70, 1)
# A task is a document and a key head. Where there are so few that threads wait for the longest more than this
# share of the time, torch's products are cut over all threads instead.
_LEAST_BUSY = 0.3


class _Settings(ctypes.Structure):
    """`Settings` of source/attention.cpp."""

    _fields_ = (
        ("num_heads", ctypes.c_int64),
        ("num_key_heads", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("num_documents", ctypes.c_int64),
        ("starts", ctypes.POINTER(ctypes.c_int64)),
        ("has_prefix", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("window", ctypes.c_int64),
        ("softcap", ctypes.c_float),
        ("num_threads", ctypes.c_int64),
    )


def can_attend(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    document_lengths: Sequence[int],
    scores: Scores,
    *,
    has_prefix: bool,
) -> bool:
    """Return whether there is a kernel for these heads, right on a trial, and enough work side by side."""
    if not is_compiled(query_HTD) or not has("attend", query_HTD.dtype) or query_HTD.shape[2] % ALIGNMENT:
        return False
    if _busy_share(document_lengths, len(key_KTD), has_prefix) < _LEAST_BUSY:
        return False
    heads = Heads(query_HTD.device, query_HTD.dtype, len(query_HTD), len(key_KTD), query_HTD.shape[2])
    return is_as_the_twin(attend, heads, _TRIED_LENGTHS, scores, (False, True))


def _busy_share(lengths: Sequence[int], num_key_heads: int, has_prefix: bool) -> float:
    """Return which share of the threads' time is work, if the longest task is what the others wait for."""
    before = lengths[0] if has_prefix else 0
    costs = [one * ((before if place else 0) + one / 2) for place, one in enumerate(lengths)]
    return sum(costs) * num_key_heads / (max(costs) * torch.get_num_threads())


def attend(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    document_lengths: Sequence[int],
    scores: Scores,
    *,
    has_prefix: bool = False,
) -> torch.Tensor:
    """Do what `attention.attend_within_documents` does; the result is token by token in memory."""
    attended_HTD: torch.Tensor = _CompiledAttention.apply(  # type: ignore[no-untyped-call]
        query_HTD, key_KTD, value_KTD, tuple(document_lengths), scores, has_prefix
    )
    return attended_HTD


class _CompiledAttention(torch.autograd.Function):
    """`attend`; the logarithms of the weights' sums are kept for the backward pass, the weights are not."""

    @staticmethod
    def forward(
        ctx: Any,
        query_HTD: torch.Tensor,
        key_KTD: torch.Tensor,
        value_KTD: torch.Tensor,
        document_lengths: tuple[int, ...],
        scores: Scores,
        has_prefix: bool,
    ) -> torch.Tensor:
        query_HTD, key_KTD, value_KTD = map(_readable, (query_HTD, key_KTD, value_KTD))
        output_HTD = _token_by_token(query_HTD)
        log_sums_HT = torch.empty(query_HTD.shape[:2], dtype=torch.float32)
        ctx.settings = _settings(query_HTD, len(key_KTD), document_lengths, scores, has_prefix)
        call(
            "attend",
            query_HTD.dtype,
            ctypes.byref(ctx.settings),
            *(one.data_ptr() for one in (query_HTD, key_KTD, value_KTD, output_HTD)),
            _strides(query_HTD, key_KTD, value_KTD, output_HTD),
            log_sums_HT.data_ptr(),
        )
        ctx.save_for_backward(query_HTD, key_KTD, value_KTD, output_HTD, log_sums_HT)
        ctx.prefix_tokens = document_lengths[0] if has_prefix else 0
        return output_HTD

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *read, log_sums_HT = ctx.saved_tensors
        read.append(_readable(gradients[0]))
        query_HTD, key_KTD, value_KTD = read[:3]
        written = [_token_by_token(one) for one in (query_HTD, key_KTD, value_KTD)]
        num_documents = ctx.settings.num_documents
        # What each document makes of the prefix's keys and values, until these are added up.
        of_prefix = torch.empty(
            num_documents * len(key_KTD) * 2 * ctx.prefix_tokens * key_KTD.shape[2], dtype=torch.float32
        )
        call(
            "attend_backward",
            query_HTD.dtype,
            ctypes.byref(ctx.settings),
            (ctypes.c_void_p * 5)(*(one.data_ptr() for one in read)),
            (ctypes.c_void_p * 3)(*(one.data_ptr() for one in written)),
            _strides(*read, *written),
            log_sums_HT.data_ptr(),
            of_prefix.data_ptr(),
        )
        return *written, None, None, None


def _settings(
    query_HTD: torch.Tensor,
    num_key_heads: int,
    document_lengths: tuple[int, ...],
    scores: Scores,
    has_prefix: bool,
) -> _Settings:
    starts = [0, *accumulate(document_lengths)]
    if starts[-1] != query_HTD.shape[1]:
        raise ValueError(f"{query_HTD.shape[1]} tokens of documents that have {starts[-1]}")
    return _Settings(
        query_HTD.shape[0],
        num_key_heads,
        query_HTD.shape[2],
        len(document_lengths),
        (ctypes.c_int64 * len(starts))(*starts),
        has_prefix,
        scores.scale,
        scores.sliding_window or 0,
        scores.softcap or 0.0,
        torch.get_num_threads(),
    )


def _readable(heads_HTD: torch.Tensor) -> torch.Tensor:
    """Return heads as the kernels read them: elements side by side, and pairs of 16 bits where words are."""
    strides = heads_HTD.stride()
    if strides[2] == 1 and not any(stride % 2 for stride in strides[:2]) and not heads_HTD.data_ptr() % 4:
        return heads_HTD
    return heads_HTD.transpose(0, 1).contiguous().transpose(0, 1)


def _token_by_token(like_HTD: torch.Tensor) -> torch.Tensor:
    num_heads, num_tokens, size = like_HTD.shape
    return torch.empty(num_tokens, num_heads, size, dtype=like_HTD.dtype).transpose(0, 1)


def _strides(*heads: torch.Tensor) -> Any:
    """Return for each tensor (H, T, D) how far tokens and heads are apart."""
    strides = [stride for one in heads for stride in (one.stride(1), one.stride(0))]
    return (ctypes.c_int64 * len(strides))(*strides)
