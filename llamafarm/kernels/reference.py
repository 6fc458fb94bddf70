"""Plain-torch twins of the kernels: slow, obvious, and what the fast ones are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def attend_with_dense_mask(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    document_lengths: Sequence[int],
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Do what `attention.attend_within_documents` does, with one T x T mask over the whole pack."""
    num_groups = query_HTD.shape[0] // key_KTD.shape[0]
    key_HTD = key_KTD.repeat_interleave(num_groups, dim=0)
    value_HTD = value_KTD.repeat_interleave(num_groups, dim=0)
    scores_HTT = query_HTD @ key_HTD.transpose(1, 2) * scale
    if softcap is not None:
        scores_HTT = softcap * torch.tanh(scores_HTT / softcap)
    hidden_TT = ~visible_pairs(document_lengths, sliding_window, query_HTD.device)
    scores_HTT = scores_HTT.masked_fill(hidden_TT, float("-inf"))
    return torch.softmax(scores_HTT.float(), dim=-1).to(query_HTD.dtype) @ value_HTD


def visible_pairs(
    document_lengths: Sequence[int], sliding_window: int | None, device: torch.device
) -> torch.Tensor:
    """Return a bool tensor (T, T): whether the token of the row may see that of the column."""
    lengths = torch.tensor(document_lengths, device=device)
    document_T = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    place_T = torch.arange(len(document_T), device=device)
    distance_TT = place_T[:, None] - place_T[None, :]
    visible_TT = (distance_TT >= 0) & (document_T[:, None] == document_T[None, :])
    if sliding_window is not None:
        visible_TT &= distance_TT < sliding_window
    return visible_TT
