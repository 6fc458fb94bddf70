"""Send a pack through a transformers model: no padding, no dense mask, logits only where they are trained on.

The attention is registered with transformers under a name of our own, so that every architecture that asks
its attention interface for a function gets it, and no mask is built. Axes: T tokens, S supervised
positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import AttentionInterface, PreTrainedModel

from llamafarm.data.encoding.pack import Pack
from llamafarm.errors import ModelError
from llamafarm.kernels.attention import attend_within_documents
from llamafarm.kernels.loss import Head, cross_entropies, head_losses, sum_cross_entropy, sum_head_loss
from llamafarm.kernels.reference import Scores
from llamafarm.model.fused import fused_blocks, projection_of

_ATTENTION_NAME = "within_documents"


def supervised_logits(model: torch.nn.Module, pack: Pack, **options: Any) -> torch.Tensor:
    """Return the logits (S, V) at the pack's supervised positions.

    `model` is a causal language model of transformers, with or without a PEFT adapter, inside
    `packed_forward`.
    """
    output = model(
        input_ids=pack.token_ids_T[None],
        position_ids=pack.position_ids_T[None],
        logits_to_keep=pack.supervised_positions_S,
        document_lengths=pack.document_lengths,
        has_prefix=pack.has_prefix,
        use_cache=False,
        **options,
    )
    logits_SV: torch.Tensor = output.logits[0]
    return logits_SV


@dataclass(frozen=True, slots=True)
class PackedForward:
    """How a model's loss on a pack is computed: what `packed_forward` found out about it.

    `head` is the output layer where the kernels know it, `num_fused` counts the modules that they compute;
    where that is none, `why_plain` says why.
    """

    model: PreTrainedModel
    head: Head | None
    num_fused: int
    why_plain: str = ""

    def sum_loss(self, pack: Pack) -> torch.Tensor:
        """Return the summed loss of the pack's supervised tokens in nats, in fp32."""
        if self.head is None:
            return sum_cross_entropy(supervised_logits(self.model, pack), pack.targets_S)
        return sum_head_loss(_supervised_hidden(self.model, pack), self.head, pack.targets_S)

    def token_losses(self, pack: Pack) -> torch.Tensor:
        """Return the loss of each supervised token (S,) in nats, in fp32, without a gradient."""
        with torch.no_grad():
            if self.head is None:
                return cross_entropies(supervised_logits(self.model, pack), pack.targets_S)
            return head_losses(_supervised_hidden(self.model, pack), self.head, pack.targets_S)


@contextmanager
def packed_forward(model: PreTrainedModel, *, fuses: bool = True) -> Iterator[PackedForward]:
    """Let `model` attend within documents meanwhile, and if it `fuses`, let kernels compute what they know.

    An adapter may be on `model` already. Under autocast nothing can be fused: kernels take numbers as they
    are. Raises `ModelError` if documents of a pack would not be to this model what they are by themselves.
    """
    before = model.config._attn_implementation
    was_training = model.training
    model.eval()
    with torch.no_grad():
        alone_SV = model(input_ids=_probe_ids(model, 0)[None, _PROBE_SPLIT:], use_cache=False).logits[0]
    model.set_attn_implementation(_ATTENTION_NAME)
    try:
        attentions: dict[torch.nn.Module, Scores] = {}
        plain_SV = _check_packs(model, alone_SV, attentions)
        rounding = _Rounding.between(plain_SV, alone_SV)
        with ExitStack() as fusing:
            num_fused = fusing.enter_context(fused_blocks(model, attentions)) if fuses else 0
            why_plain = "" if num_fused else "it has no frozen block that the kernels know"
            if num_fused:
                with torch.no_grad():
                    fused_SV = supervised_logits(model, _probe_pack(model, 0))
                if not rounding.explains(fused_SV, plain_SV):
                    fusing.close()
                    num_fused = 0
                    why_plain = f"the kernels' logits are off by {_distance(fused_SV, plain_SV):.2g}"
            head = _find_head(model, plain_SV, rounding) if fuses else None
            model.train(was_training)
            yield PackedForward(model, head, num_fused, why_plain)
    finally:
        model.set_attn_implementation(before)


def _check_packs(
    model: PreTrainedModel, alone_SV: torch.Tensor, attentions: dict[torch.nn.Module, Scores]
) -> torch.Tensor:
    """Compare a document in two packs with itself: what comes before it must change nothing.

    Recurrent layers, and attention that does not go through transformers' interface, carry one document into
    the next without an error, and some position embeddings do not look at `position_ids`. Returns the
    document's logits in a pack; `attentions` gets the modules that attend.
    """
    try:
        with torch.no_grad():
            one_SV = supervised_logits(model, _probe_pack(model, 0), attentions=attentions)
            other_SV = supervised_logits(model, _probe_pack(model, 1))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise _not_packable(model, str(error).partition("\n")[0]) from error
    # Written so that what is not a number does not pass.
    if not _distance(one_SV, other_SV) <= 1e-4:
        raise _not_packable(model, "a document would change the next one")
    if not _distance(one_SV, alone_SV) <= _Rounding.MOST[alone_SV.dtype]:
        raise _not_packable(model, "a document in a pack is not what it is alone")
    return one_SV


def _supervised_hidden(model: PreTrainedModel, pack: Pack) -> torch.Tensor:
    """Return what the output layer gets (S, D), at the pack's supervised positions."""
    output = model.get_decoder()(
        input_ids=pack.token_ids_T[None],
        position_ids=pack.position_ids_T[None],
        document_lengths=pack.document_lengths,
        has_prefix=pack.has_prefix,
        use_cache=False,
    )
    hidden_SD: torch.Tensor = output.last_hidden_state[0, pack.supervised_positions_S]
    return hidden_SD


def _find_head(model: PreTrainedModel, plain_SV: torch.Tensor, rounding: _Rounding) -> Head | None:
    """Return the output layer if it is frozen, linear and what the model's logits come from; None if not."""
    layer = model.get_output_embeddings()
    projection = projection_of(layer) if layer is not None else None
    if projection is None or projection.rank or projection.bias_O is not None:
        return None
    if not isinstance(projection.weight_OI, torch.Tensor):
        return None  # the head's chunks would make it dense one after another
    config = model.config
    head = Head(
        projection.weight_OI.detach(),
        getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1.0),
        getattr(config, "final_logit_softcapping", None),
    )
    pack = _probe_pack(model, 0)
    with torch.no_grad():
        logits_SV = torch.empty_like(plain_SV)
        head.write_logits(_supervised_hidden(model, pack), logits_SV)
    return head if rounding.explains(logits_SV, plain_SV) else None


@dataclass(frozen=True, slots=True)
class _Rounding:
    """How far two ways to the same logits are apart, where other shapes mean other rounding."""

    # What two right ways are never apart: above it, one of them is wrong.
    MOST: ClassVar = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
    # What is rounding even where two ways happen to agree.
    LEAST: ClassVar = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}

    distance: float

    @staticmethod
    def between(one_SV: torch.Tensor, other_SV: torch.Tensor) -> _Rounding:
        """Return the rounding that two right ways differ by: it grows with the depth of a model."""
        return _Rounding(_distance(one_SV, other_SV))

    def explains(self, one_SV: torch.Tensor, other_SV: torch.Tensor) -> bool:
        """Return whether a third way is no farther off than rounding puts it."""
        dtype = other_SV.dtype
        most = min(max(2 * self.distance, self.LEAST[dtype]), self.MOST[dtype])
        return _distance(one_SV, other_SV) <= most


def _distance(one_SV: torch.Tensor, other_SV: torch.Tensor) -> float:
    """Return how far tensors are apart in the mean (a root of squares), by the spread of the second."""
    wide_SV = other_SV.float()
    return float((one_SV.float() - wide_SV).square_().mean().sqrt() / wide_SV.std())


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
    has_prefix: bool = False,
    attentions: dict[torch.nn.Module, Scores] | None = None,
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
    scale = scaling if scaling is not None else query_1HTD.shape[-1] ** -0.5
    scores = Scores(scale, sliding_window, softcap)
    if attentions is not None:
        attentions[module] = scores
    attended_HTD = attend_within_documents(
        query_1HTD[0], key_1KTD[0], value_1KTD[0], document_lengths, scores, has_prefix=has_prefix
    )
    return attended_HTD.transpose(0, 1)[None], None


AttentionInterface.register(_ATTENTION_NAME, _attend)
