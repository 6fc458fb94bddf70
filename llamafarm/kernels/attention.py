"""Causal attention within each document of a pack, and never across.

Axes: H query heads, K key heads (H is a multiple of K), T tokens of the pack, D head size. The plain twin
is `reference.attend_with_dense_mask`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from llamafarm.kernels.reference import attend_with_dense_mask


def attend_within_documents(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    document_lengths: Sequence[int],
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Return the attention's output with axes (H, T, D), document by document.

    `sliding_window` is how many tokens a token sees, itself included; `softcap` bounds the scores by a tanh,
    as Gemma 2 does. On a CPU 16-bit numbers are attended to in fp32.
    """
    if query_HTD.device.type == "cpu" and query_HTD.dtype.itemsize < 4:
        return _attend_in_fp32(
            query_HTD,
            key_KTD,
            value_KTD,
            document_lengths,
            scale=scale,
            sliding_window=sliding_window,
            softcap=softcap,
        )
    lengths = list(document_lengths)
    outputs = []
    # split, not slices: the gradient of a slice is as long as the whole pack.
    parts = (torch.split(tensor, lengths, dim=1) for tensor in (query_HTD, key_KTD, value_KTD))
    for query, key, value in zip(*parts, strict=True):
        length = query.shape[1]
        if softcap is not None or (sliding_window is not None and sliding_window < length):
            attended = attend_with_dense_mask(
                query, key, value, [length], scale=scale, sliding_window=sliding_window, softcap=softcap
            )
        else:
            attended = functional.scaled_dot_product_attention(
                query[None], key[None], value[None], is_causal=True, scale=scale, enable_gqa=True
            )[0]
        outputs.append(attended)
    return torch.cat(outputs, dim=1)


def _attend_in_fp32(
    query_HTD: torch.Tensor, key_KTD: torch.Tensor, value_KTD: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Return the attention of 16-bit numbers, rounded once, at the end.

    In 16 bits oneDNN compiles kernels for every length of a document and keeps them: 5 MiB a length, until
    its cache is full and each step compiles anew. Fp32 has none of that, and is as fast up to 1,000 tokens.
    """
    with torch.autocast("cpu", enabled=False):
        attended = attend_within_documents(
            query_HTD.float(), key_KTD.float(), value_KTD.float(), *args, **kwargs
        )
    return attended.to(query_HTD.dtype)
