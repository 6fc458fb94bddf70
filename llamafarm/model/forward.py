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

from llamafarm.data.encoding.pack import Pack
from llamafarm.errors import ModelError
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
    """Let `model` attend within documents meanwhile; afterwards it attends as before.

    Raises `ModelError` if documents of a pack would not be to this model what they are by themselves.
    """
    before = model.config._attn_implementation
    was_training = model.training
    model.eval()
    with torch.no_grad():
        alone_SV = model(input_ids=_probe_ids(model, 0)[None, _PROBE_SPLIT:], use_cache=False).logits[0]
    model.set_attn_implementation(_ATTENTION_NAME)
    try:
        _check_packs(model, alone_SV)
        model.train(was_training)
        yield
    finally:
        model.set_attn_implementation(before)


def _check_packs(model: PreTrainedModel, alone_SV: torch.Tensor) -> None:
    """Compare a document in two packs with itself: what comes before it must change nothing.

    Recurrent layers, and attention that does not go through transformers' interface, carry one document into
    the next without an error, and some position embeddings do not look at `position_ids`.
    """
    try:
        with torch.no_grad():
            one_SV, other_SV = (supervised_logits(model, _probe_pack(model, shift)) for shift in (0, 1))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise _not_packable(model, str(error).partition("\n")[0]) from error
    spread = float(alone_SV.float().std())
    leak = float((one_SV.float() - other_SV.float()).abs().max())
    if leak > 1e-4 * spread:
        raise _not_packable(model, "a document would change the next one")
    # Other shapes mean other rounding, which 16-bit numbers feel.
    tolerance = 1e-3 if alone_SV.dtype == torch.float32 else 0.2
    if float((one_SV.float() - alone_SV.float()).abs().max()) > tolerance * spread:
        raise _not_packable(model, "a document in a pack is not what it is alone")


_PROBE_SPLIT, _PROBE_LENGTH = 5, 12


def _probe_ids(model: PreTrainedModel, shift: int) -> torch.Tensor:
    """Return two documents end to end; the first depends on `shift`, the second does not."""
    ids_T = torch.arange(_PROBE_LENGTH, device=model.device) * 7
    ids_T[:_PROBE_SPLIT] += shift
    return torch.remainder(ids_T, model.get_input_embeddings().weight.shape[0])


def _probe_pack(model: PreTrainedModel, shift: int) -> Pack:
    ids_T = _probe_ids(model, shift)
    lengths = (_PROBE_SPLIT, _PROBE_LENGTH - _PROBE_SPLIT)
    positions_T = torch.cat([torch.arange(length, device=model.device) for length in lengths])
    second_S = torch.arange(_PROBE_SPLIT, _PROBE_LENGTH, device=model.device)
    return Pack(ids_T, positions_T, second_S, ids_T[_PROBE_SPLIT:], lengths, (0, 1))


def _not_packable(model: PreTrainedModel, reason: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be trained on packed rows: {reason}",
        where="base_model.huggingface_id",
        remedy="Choose a base model of another architecture, such as Llama, Qwen, Mistral, Gemma or Phi.",
    )


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
