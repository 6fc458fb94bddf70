"""Attention of documents of one length, as a batch, on CUDA: torch's own, cuDNN's kernel before the others.

Rows that were cut to the longest length, or cut out of one text, are alike. On an H100 cuDNN's kernel takes
half the time of FlashAttention 2, but makes a plan for each shape that it meets: so only lengths that many
packs share are taken. The rest is `varlen`'s. Axes: H query heads, K key heads, T tokens, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from llamafarm.kernels.reference import Scores
from llamafarm.kernels.trial import Heads, is_as_the_twin

_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# Lengths that are taken are multiples of this.
_LENGTH = 256


def can_attend(
    query_HTE: torch.Tensor,
    key_KTE: torch.Tensor,
    document_lengths: Sequence[int],
    scores: Scores,
    *,
    has_prefix: bool,
) -> bool:
    """Return whether `attend` takes these documents, and is right for such heads."""
    is_of_kind = query_HTE.device.type == "cuda" and query_HTE.dtype in (torch.bfloat16, torch.float16)
    length = document_lengths[0]
    if not is_of_kind or has_prefix or length % _LENGTH or len(set(document_lengths)) > 1:
        return False
    if scores.softcap is not None or (scores.sliding_window or length) < length:
        return False
    heads = Heads(query_HTE.device, query_HTE.dtype, len(query_HTE), len(key_KTE), query_HTE.shape[2])
    return is_as_the_twin(attend, heads, (_LENGTH, _LENGTH), Scores(scores.scale))


def attend(
    query_HTE: torch.Tensor,
    key_KTE: torch.Tensor,
    value_KTE: torch.Tensor,
    document_lengths: Sequence[int],
    scores: Scores,
    *,
    has_prefix: bool = False,
) -> torch.Tensor:
    """Return the attention's output (H, T, E); the contract is `attention.attend_within_documents`'."""
    assert not has_prefix
    queries, keys, values = (
        heads.view(len(heads), len(document_lengths), document_lengths[0], -1).transpose(0, 1)
        for heads in (query_HTE, key_KTE, value_KTE)
    )
    with sdpa_kernel(_BACKENDS, set_priority=True):
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scores.scale, enable_gqa=True
        )
    return attended.transpose(0, 1).flatten(1, 2)
