"""Plain-torch twins of the kernels: slow, obvious, and what the fast ones are tested against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from llamafarm.kernels.lora import Projection


@dataclass(frozen=True, slots=True)
class Scores:
    """How scores are made: scaled, bounded by a tanh as Gemma 2 does, and of how many tokens.

    `sliding_window` is how many tokens a token sees, itself included.
    """

    scale: float
    sliding_window: int | None = None
    softcap: float | None = None


def attend_with_dense_mask(
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    document_lengths: Sequence[int],
    scores: Scores,
    *,
    has_prefix: bool = False,
) -> torch.Tensor:
    """Do what `attention.attend_within_documents` does, with one T x T mask over the whole pack."""
    visible_TT = visible_pairs(
        document_lengths, scores.sliding_window, query_HTD.device, has_prefix=has_prefix
    )
    return attend_by_pairs(query_HTD, key_KTD, value_KTD, visible_TT, scores)


def attend_by_pairs(
    query_HTD: torch.Tensor,
    key_KCD: torch.Tensor,
    value_KCD: torch.Tensor,
    visible_TC: torch.Tensor,
    scores: Scores,
) -> torch.Tensor:
    """Return attention (H, T, D) of T queries to those of C keys that `visible_TC` has."""
    num_groups = query_HTD.shape[0] // key_KCD.shape[0]
    key_HCD = key_KCD.repeat_interleave(num_groups, dim=0)
    value_HCD = value_KCD.repeat_interleave(num_groups, dim=0)
    scores_HTC = query_HTD @ key_HCD.transpose(1, 2) * scores.scale
    if scores.softcap is not None:
        scores_HTC = scores.softcap * torch.tanh(scores_HTC / scores.softcap)
    scores_HTC = scores_HTC.masked_fill(~visible_TC, float("-inf"))
    return torch.softmax(scores_HTC.float(), dim=-1).to(query_HTD.dtype) @ value_HCD


def visible_pairs(
    document_lengths: Sequence[int],
    sliding_window: int | None,
    device: torch.device,
    *,
    has_prefix: bool = False,
) -> torch.Tensor:
    """Return a bool tensor (T, T): whether the token of the row may see that of the column."""
    lengths = torch.tensor(document_lengths, device=device)
    document_T = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    place_T = torch.cat([torch.arange(length, device=device) for length in document_lengths])
    is_seen_TT = document_T[:, None] == document_T[None, :]
    if has_prefix:
        place_T = place_T + document_lengths[0] * (document_T > 0)
        is_seen_TT |= document_T[None, :] == 0
    distance_TT = place_T[:, None] - place_T[None, :]
    visible_TT = (distance_TT >= 0) & is_seen_TT
    if sliding_window is not None:
        visible_TT &= distance_TT < sliding_window
    return visible_TT


def normalize(hidden_TD: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Do what `elementwise.normalize` does, as it is written down."""
    wide_TD = hidden_TD.float()
    return (wide_TD * torch.rsqrt(wide_TD.square().mean(-1, keepdim=True) + epsilon) * weight_D).to(
        hidden_TD.dtype
    )


def rotate(heads_TND: torch.Tensor, cosine_TE: torch.Tensor, sine_TE: torch.Tensor) -> torch.Tensor:
    """Do what `elementwise.rotate` does: each pair of elements is turned by its angle."""
    half = cosine_TE.shape[-1] // 2
    first, second, rest = torch.split(heads_TND, [half, half, heads_TND.shape[-1] - 2 * half], dim=-1)
    cosine, sine = cosine_TE[:, None, :half], sine_TE[:, None, :half]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine, rest), dim=-1)


def project(hidden_TI: torch.Tensor, projections: Sequence[Projection]) -> tuple[torch.Tensor, ...]:
    """Do what `lora.project` does: each layer by itself, and its adapter in the adapter's own numbers."""
    outputs = []
    for one in projections:
        output_TO = functional.linear(hidden_TI, one.dense_weight(), one.bias_O)
        if one.down_rI is not None and one.up_Or is not None:
            dropped_TI = hidden_TI if one.mask is None else hidden_TI * one.mask.draw(hidden_TI)
            adapted_TO = dropped_TI.to(one.down_rI.dtype) @ one.down_rI.t() @ one.up_Or.t() * one.factor
            output_TO = (output_TO + adapted_TO).to(hidden_TI.dtype)
        outputs.append(output_TO)
    return tuple(outputs)
