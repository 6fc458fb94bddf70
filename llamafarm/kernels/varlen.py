"""Attention of all documents of a pack at once, on CUDA: torch's FlashAttention by cumulative lengths.

`can_attend` tries it once for each kind of heads against the plain twin. The rest is `attention`'s, document
by document. Axes: H query heads, K key heads, T tokens of the pack, C keys of all documents, E head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn

from llamafarm.kernels.reference import Scores
from llamafarm.kernels.trial import Heads, is_as_the_twin

_TRIAL_LENGTHS = (24, 9, 40)


def can_attend(query_HTE: torch.Tensor, key_KTE: torch.Tensor, scores: Scores) -> bool:
    """Return whether `attend` is right for tensors of this device, dtype and number and size of heads."""
    is_of_kind = query_HTE.device.type == "cuda" and query_HTE.dtype in (torch.bfloat16, torch.float16)
    if not is_of_kind or scores.softcap is not None:
        return False
    heads = Heads(query_HTE.device, query_HTE.dtype, len(query_HTE), len(key_KTE), query_HTE.shape[2])
    return _is_right_for(heads, scores)


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
    query_THE, key_CKE, value_CKE = (heads.transpose(0, 1) for heads in (query_HTE, key_KTE, value_KTE))
    lengths = tuple(document_lengths)
    num_seen = lengths
    if has_prefix:
        # Each document's keys come after a copy of the first document's; their gradients add up in it.
        rows_C = _rows_behind_prefix(lengths, query_HTE.device)
        key_CKE, value_CKE = key_CKE[rows_C], value_CKE[rows_C]
        num_seen = (lengths[0], *(lengths[0] + length for length in lengths[1:]))
    options: dict[str, Any] = {"enable_gqa": True} if _knows(varlen_attn, "enable_gqa") else {}
    if len(query_HTE) != len(key_KTE) and not options:
        num_groups = len(query_HTE) // len(key_KTE)
        key_CKE = key_CKE.repeat_interleave(num_groups, dim=1)
        value_CKE = value_CKE.repeat_interleave(num_groups, dim=1)
    window = -1 if scores.sliding_window is None else scores.sliding_window - 1
    attended_THE = varlen_attn(
        query_THE.contiguous(),
        key_CKE.contiguous(),
        value_CKE.contiguous(),
        _bounds(lengths, query_HTE.device),
        _bounds(num_seen, query_HTE.device),
        max(lengths),
        max(num_seen),
        scale=scores.scale,
        window_size=(window, 0),  # causal: nothing to the right of the last query's key
        **options,
    )
    assert isinstance(attended_THE, torch.Tensor)
    return attended_THE.transpose(0, 1)


def _is_right_for(heads: Heads, scores: Scores) -> bool:
    return _knows(varlen_attn, "window_size") and is_as_the_twin(
        attend, heads, _TRIAL_LENGTHS, scores, (False, True)
    )


@lru_cache(maxsize=8)  # every layer of every pack asks
def _knows(function: Callable[..., Any], parameter: str) -> bool:
    """Return whether this version's function has a parameter."""
    return parameter in inspect.signature(function).parameters


# A pack's layers ask one after another: what was brought to the device for the first serves all. Made outside
# inference mode, since an evaluation may be the first to ask: what is made there is no use in training.
@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return where each document begins, and where the last one ends."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _rows_behind_prefix(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return the keys that each document sees, one document after the other."""
    first, *others = lengths
    rows = list(range(first))
    begin = first
    for length in others:
        rows += [*range(first), *range(begin, begin + length)]
        begin += length
    return torch.tensor(rows, device=device)
