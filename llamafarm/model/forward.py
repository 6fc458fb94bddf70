"""Send a pack through a transformers model: no padding, no dense mask, logits only where they are trained on.

The attention is registered with transformers under a name of our own, so that every architecture that asks
its attention interface for a function gets it, and no mask is built. Axes: T tokens, S supervised
positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from llamafarm.data.pack import Pack
from llamafarm.kernels.attention import attend_within_documents

_ATTENTION_NAME = "within_documents"


def supervised_logits(model: torch.nn.Module, pack: Pack) -> torch.Tensor:
    """Return the logits (S, V) at the pack's supervised positions.

    `model` is a causal language model of transformers, with or without a PEFT adapter, inside
    `packed_attention`.
    """
    output = model(
        input_ids=pack.token_ids_T[None],
        position_ids=pack.position_ids_T[None],
        logits_to_keep=pack.supervised_positions_S,
        document_lengths=pack.document_lengths,
        use_cache=False,
    )
    logits_SV: torch.Tensor = output.logits[0]
    return logits_SV


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let `model` attend within documents meanwhile; afterwards it attends as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(_ATTENTION_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1KTD: torch.Tensor,
    value_1KTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    document_lengths: Sequence[int],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Answer transformers' attention interface; the output has axes (1, T, H, D)."""
    if attention_mask is not None or s_aux is not None or dropout:
        raise NotImplementedError(
            f"{type(module).__name__} asks for an attention mask, an attention sink or attention dropout, "
            "which packed training does not have"
        )
    attended_HTD = attend_within_documents(
        query_1HTD[0],
        key_1KTD[0],
        value_1KTD[0],
        document_lengths,
        scale=scaling if scaling is not None else query_1HTD.shape[-1] ** -0.5,
        sliding_window=sliding_window,
        softcap=softcap,
    )
    return attended_HTD.transpose(0, 1)[None], None


AttentionInterface.register(_ATTENTION_NAME, _attend)
