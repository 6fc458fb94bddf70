"""Let the kernels compute what they know of a transformers model: attention, feed-forward, norms, adapters.

A block is recognised by what it is made of, not by its architecture's name, and its module's `forward` is
replaced meanwhile. Whatever is not recognised (a trained norm, a DoRA layer, a bias that is trained) keeps
its own. That the result is the same is checked by `forward`, which has the probe.

Axes: T tokens, D hidden size, H query heads, K key heads, E size of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from llamafarm.kernels.attention import attend_within_documents
from llamafarm.kernels.dropout import RowDropout
from llamafarm.kernels.elementwise import ACTIVATIONS, gate, normalize, rotate
from llamafarm.kernels.lora import Projection, project
from llamafarm.kernels.reference import Scores
from llamafarm.model.quantized import Weight4Bit, is_in_4_bits

Forward = Callable[..., Any]


@contextmanager
def fused_blocks(model: PreTrainedModel, attentions: Mapping[nn.Module, Scores]) -> Iterator[int]:
    """Let kernels compute the blocks of `model` that they know; yield how many modules that are.

    `attentions` has the modules that attend, and how each makes its scores.
    """
    fused: list[nn.Module] = []
    try:
        for module in model.modules():
            forward = _fuse(module, attentions)
            if forward is not None:
                module.forward = forward
                fused.append(module)
        yield len(fused)
    finally:
        for module in fused:
            del module.forward


def _fuse(module: nn.Module, attentions: Mapping[nn.Module, Scores]) -> Forward | None:
    """Return what computes a module instead of its own `forward`, or None if no kernel does."""
    if module in attentions:
        return _fuse_attention(module, attentions[module])
    for recognise in (_fuse_norm, _fuse_feed_forward, _fuse_adapter):
        forward = recognise(module)
        if forward is not None:
            return forward
    return None


def projection_of(module: Any) -> Projection | None:
    """Return a linear layer, with its adapter as it is now, as the kernels take it; None if they do not."""
    if type(module) is nn.Linear or is_in_4_bits(module):
        if any(parameter.requires_grad for parameter in module.parameters()):
            return None
        weight = module.weight if type(module) is nn.Linear else Weight4Bit.of(module)
        return Projection(weight, module.bias)
    if not _is_adapted(module) or module.merged or module.lora_variant:
        return None
    base = projection_of(module.base_layer)
    if base is None or len(module.active_adapters) != 1 or module.fan_in_fan_out:
        return None
    (name,) = module.active_adapters
    if name not in module.lora_A or module.lora_bias[name]:
        return None
    if module.disable_adapters:
        return base
    dropout = module.lora_dropout[name]
    if not isinstance(dropout, RowDropout | nn.Identity):
        return None
    return Projection(
        base.weight_OI,
        base.bias_O,
        module.lora_A[name].weight,
        module.lora_B[name].weight,
        module.scaling[name],
        dropout.mask() if isinstance(dropout, RowDropout) else None,
    )


def _is_adapted(module: nn.Module) -> bool:
    """Return whether a module is peft's linear layer with an adapter, on a weight in 4 bits or in full."""
    if not isinstance(module, LoraLayer):
        return False
    return type(module) is LoraLinear or is_in_4_bits(module.get_base_layer())


def _project(hidden_1TD: torch.Tensor, layers: Sequence[nn.Module]) -> tuple[torch.Tensor, ...]:
    """Return what each layer makes of `hidden_1TD`, with axes (T, O)."""
    projections = []
    for layer in layers:
        projection = projection_of(layer)
        assert projection is not None  # it was when the block was fused
        projections.append(projection)
    return project(hidden_1TD.flatten(0, -2), projections)


def _fuse_adapter(module: nn.Module) -> Forward | None:
    if not _is_adapted(module) or projection_of(module) is None:
        return None

    def forward(hidden_1TD: torch.Tensor) -> torch.Tensor:
        (output_TO,) = _project(hidden_1TD, [module])
        return output_TO.view(*hidden_1TD.shape[:-1], output_TO.shape[-1])

    return forward


def _fuse_norm(module: nn.Module) -> Forward | None:
    norm = _Norm.of(module)
    return None if norm is None else norm.compute


@dataclass(frozen=True, slots=True)
class _Norm:
    """A frozen RMS norm: its weight in fp32, as it is multiplied with."""

    weight_D: torch.Tensor
    epsilon: float

    @staticmethod
    def of(module: nn.Module) -> _Norm | None:
        """Return an RMS norm if `module` is one; Gemma's counts its weights from 1, which a trial shows."""
        weight_D = getattr(module, "weight", None)
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if not type(module).__name__.endswith("RMSNorm") or weight_D is None or epsilon is None:
            return None
        if weight_D.requires_grad or weight_D.dim() != 1:
            return None
        trial_TD = torch.linspace(-1, 2, 2 * len(weight_D), device=weight_D.device).view(2, -1)
        with torch.no_grad():
            expected_TD = module(trial_TD)
            for offset in (0.0, 1.0):
                norm = _Norm(weight_D.detach().float() + offset, float(epsilon))
                if torch.allclose(norm.compute(trial_TD), expected_TD.float(), rtol=1e-2, atol=1e-3):
                    return norm
        return None

    def compute(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Return the normed tensor; whatever axes are before the last."""
        return normalize(hidden_TD, self.weight_D, self.epsilon)


def _fuse_feed_forward(module: nn.Module) -> Forward | None:
    activation = ACTIVATIONS.get(_activation_name(getattr(module, "act_fn", None)))
    activation = activation or ACTIVATIONS.get(_activation_name(getattr(module, "activation_fn", None)))
    inner = _layers(module, ("gate_proj", "up_proj")) or _layers(module, ("gate_up_proj",))
    outer = _layers(module, ("down_proj",))
    if activation is None or inner is None or outer is None:
        return None

    def forward(hidden_1TD: torch.Tensor) -> torch.Tensor:
        projected = _project(hidden_1TD, inner)
        gate_TI, up_TI = projected if len(projected) == 2 else projected[0].chunk(2, dim=-1)
        gated_TI = gate(gate_TI, up_TI, activation)
        (output_TD,) = _project(gated_TI, outer)
        return output_TD.view(hidden_1TD.shape)

    return forward


def _activation_name(module: nn.Module | None) -> str:
    """Return the name under which the kernels may know an activation."""
    if module is None:
        return ""
    names = {"SiLUActivation": "silu", "SiLU": "silu", "GELUTanh": "gelu_tanh", "GELUActivation": "gelu"}
    return names.get(type(module).__name__, "")


def _layers(module: nn.Module, names: Sequence[str]) -> list[nn.Module] | None:
    """Return a module's layers of these names if it has them all and the kernels know each."""
    layers = [getattr(module, name, None) for name in names]
    found = [layer for layer in layers if isinstance(layer, nn.Module) and projection_of(layer) is not None]
    return found if len(found) == len(names) else None


def _fuse_attention(module: nn.Module, scores: Scores) -> Forward | None:
    """Fuse an attention that has its heads from linear layers, rotary positions, and nothing else between."""
    if getattr(module, "attention_dropout", 0.0):
        return None  # its own forward says that packs have none
    inner = _layers(module, ("q_proj", "k_proj", "v_proj")) or _layers(module, ("qkv_proj",))
    outer = _layers(module, ("o_proj",))
    known = {"q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "q_norm", "k_norm"}
    if inner is None or outer is None or {name for name, _ in module.named_children()} - known:
        return None
    norms = [_Norm.of(norm) for norm in (getattr(module, n, None) for n in ("q_norm", "k_norm")) if norm]
    if any(norm is None or len(norm.weight_D) != getattr(module, "head_dim", 0) for norm in norms):
        return None
    attention = _Attention(module, scores, inner, outer, [norm for norm in norms if norm is not None])
    return attention.forward


@dataclass(frozen=True, slots=True)
class _Attention:
    """An attention block: `inner` makes queries, keys and values, `outer` takes what was attended to."""

    module: nn.Module
    scores: Scores
    inner: Sequence[nn.Module]
    outer: Sequence[nn.Module]
    norms: Sequence[_Norm]

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        *,
        document_lengths: Sequence[int],
        has_prefix: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Answer for the module: the output (1, T, D), and no weights."""
        assert attention_mask is None and past_key_values is None
        query_THE, key_TKE, value_TKE = self._heads(hidden_states)
        if self.norms:
            query_THE, key_TKE = self.norms[0].compute(query_THE), self.norms[1].compute(key_TKE)
        cosine_TE, sine_TE = (table[0] for table in position_embeddings)
        query_THE = rotate(query_THE, cosine_TE, sine_TE)
        key_TKE = rotate(key_TKE, cosine_TE, sine_TE)
        attended_HTE = attend_within_documents(
            query_THE.transpose(0, 1),
            key_TKE.transpose(0, 1),
            value_TKE.transpose(0, 1),
            document_lengths,
            self.scores,
            has_prefix=has_prefix,
        )
        attended_TD = attended_HTE.transpose(0, 1).flatten(1)
        return _project(attended_TD, self.outer)[0][None], None

    def _heads(self, hidden_1TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries, keys and values, with axes (T, heads, E)."""
        module: Any = self.module
        projected = _project(hidden_1TD, self.inner)
        if len(projected) == 1:
            num_keys = module.config.num_key_value_heads * module.head_dim
            num_queries = projected[0].shape[-1] - 2 * num_keys
            projected = torch.split(projected[0], [num_queries, num_keys, num_keys], dim=-1)
        query, key, value = (one.view(len(one), -1, module.head_dim) for one in projected)
        return query, key, value
