"""Causal attention within each document of a pack, and never across.

On a processor it is compiled (`cpu.attention`) or `blocked`, on CUDA `alike` or `varlen` where torch has
that, elsewhere torch's own, document by document. The plain twin is `reference.attend_with_dense_mask`.
Axes: H query heads, K key heads (H is a multiple of K), T tokens of the pack, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from llamafarm.kernels import alike, varlen
from llamafarm.kernels.blocked import attend_in_blocks
from llamafarm.kernels.compiled import why_not_compiled
from llamafarm.kernels.cpu import attention as compiled
from llamafarm.kernels.reference import Scores, attend_by_pairs, visible_pairs


def attend_within_documents(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    document_lengths: Sequence[int],
    scores: Scores,
    *,
    has_prefix: bool = False,
) -> torch.Tensor:
    """Return the attention's output with axes (H, T, D), document by document.

    With `has_prefix` the first document comes before every other one, which sees all of it.
    """
    lengths = list(document_lengths)
    if _is_processor(query_HTD.device):
        return _attend_on_processor(query_HTD, key_KTD, value_KTD, lengths, scores, has_prefix=has_prefix)
    if alike.can_attend(query_HTD, key_KTD, lengths, scores, has_prefix=has_prefix):
        return alike.attend(query_HTD, key_KTD, value_KTD, lengths, scores)
    if varlen.can_attend(query_HTD, key_KTD, scores):
        return varlen.attend(query_HTD, key_KTD, value_KTD, lengths, scores, has_prefix=has_prefix)
    # split, not slices: the gradient of a slice is as long as the whole pack.
    queries, keys, values = (torch.split(one, lengths, dim=1) for one in (query_HTD, key_KTD, value_KTD))
    outputs = []
    for place, query in enumerate(queries):
        key, value = keys[place], values[place]
        if has_prefix and place:
            key, value = (torch.cat((heads[0], heads[place]), dim=1) for heads in (keys, values))
        outputs.append(_attend_alone(query, key, value, scores))
    return torch.cat(outputs, dim=1)


def keeps_weights(device_kind: str, head_size: int) -> bool:
    """Return whether attention keeps its weights for the backward pass, where its documents are short."""
    return device_kind == "cpu" and (
        why_not_compiled("cpu") is not None or head_size % compiled.ALIGNMENT > 0
    )


def _attend_on_processor(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    lengths: Sequence[int],
    scores: Scores,
    *,
    has_prefix: bool,
) -> torch.Tensor:
    if torch.is_autocast_enabled("cpu"):  # which leaves rotated queries in fp32 beside values in 16 bits
        dtype = torch.get_autocast_dtype("cpu")
        query_HTD, key_KTD, value_KTD = query_HTD.to(dtype), key_KTD.to(dtype), value_KTD.to(dtype)
    with torch.autocast("cpu", enabled=False):
        is_compiled = compiled.can_attend(query_HTD, key_KTD, lengths, scores, has_prefix=has_prefix)
        attend = compiled.attend if is_compiled else attend_in_blocks
        return attend(query_HTD, key_KTD, value_KTD, lengths, scores, has_prefix=has_prefix)


def _is_processor(device: torch.device) -> bool:
    return device.type == "cpu"


def _attend_alone(
    query_HTD: torch.Tensor, key_KCD: torch.Tensor, value_KCD: torch.Tensor, scores: Scores
) -> torch.Tensor:
    """Return the attention of the last T of C tokens."""
    num_queries, num_keys = query_HTD.shape[1], key_KCD.shape[1]
    is_windowed = scores.sliding_window is not None and scores.sliding_window < num_keys
    if scores.softcap is not None or is_windowed:
        return attend_by_pairs(
            query_HTD,
            key_KCD,
            value_KCD,
            visible_pairs([num_keys], scores.sliding_window, query_HTD.device)[-num_queries:],
            scores,
        )
    ahead_of = None
    if num_queries < num_keys:
        ahead_of = visible_pairs([num_keys], None, query_HTD.device)[-num_queries:]
    attended_1HTD = functional.scaled_dot_product_attention(
        query_HTD[None],
        key_KCD[None],
        value_KCD[None],
        attn_mask=ahead_of,
        is_causal=ahead_of is None,
        scale=scores.scale,
        enable_gqa=True,
    )
    return attended_1HTD[0]
