"""Causal attention within each document of a pack, and never across.

On a processor it is `blocked`, elsewhere torch's own, document by document. Axes: H query heads, K key heads
(H is a multiple of K), T tokens of the pack, D head size. The plain twin is
`reference.attend_with_dense_mask`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from llamafarm.kernels.blocked import attend_in_blocks
from llamafarm.kernels.reference import Scores, attend_with_dense_mask


def attend_within_documents(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    document_lengths: Sequence[int],
    scores: Scores,
) -> torch.Tensor:
    """Return the attention's output with axes (H, T, D), document by document."""
    lengths = list(document_lengths)
    if query_HTD.device.type == "cpu":
        return attend_in_blocks(query_HTD, key_KTD, value_KTD, lengths, scores)
    outputs = []
    # split, not slices: the gradient of a slice is as long as the whole pack.
    parts = (torch.split(tensor, lengths, dim=1) for tensor in (query_HTD, key_KTD, value_KTD))
    for query, key, value in zip(*parts, strict=True):
        length = query.shape[1]
        is_windowed = scores.sliding_window is not None and scores.sliding_window < length
        if scores.softcap is not None or is_windowed:
            attended = attend_with_dense_mask(query, key, value, [length], scores)
        else:
            attended = functional.scaled_dot_product_attention(
                query[None], key[None], value[None], is_causal=True, scale=scores.scale, enable_gqa=True
            )[0]
        outputs.append(attended)
    return torch.cat(outputs, dim=1)
