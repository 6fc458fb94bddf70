"""PiSSA: an adapter that starts as the principal part of the weights it stands beside.

Meng et al., 2024 (arXiv:2404.02948) train the strongest directions of each weight, W = W_rest + s B0 A0, and
freeze the rest. Here W itself is left as it is and s B0 A0 x is taken off its output, so that the trained
change is s (B A - B0 A0) in 16 bits, too: it is saved as a plain LoRA adapter of twice the rank, which any
tool puts on the untouched base.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.nn import functional as F  # noqa: N812

from llamafarm.errors import ModelError

_ADAPTER = "default"
# As close to the full decomposition as PiSSA's own fast start, in seconds where that takes minutes.
_SUBSPACE_ITERATIONS, _OVERSAMPLING = 16, 8


class PrincipalPart:
    """A forward hook that takes the adapter's first weights off its base layer's output."""

    def __init__(self, a_RI: torch.Tensor, b_OR: torch.Tensor, scaling: float) -> None:
        self.a_RI, self.b_OR, self.scaling = a_RI, b_OR, scaling

    def __call__(self, _: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        """Return the output of what is left of the base weight."""
        part = F.linear(F.linear(inputs[0].to(self.a_RI.dtype), self.a_RI), self.b_OR)
        return output - (self.scaling * part).to(output.dtype)


def start_from_principal_part(model: PeftModel) -> None:
    """Make the new adapter of `model` the principal part of its base weights; outputs stay what they were.

    Draws from torch's random numbers. Raises `ModelError` if r is larger than a layer.
    """
    for name, layer in _lora_layers(model):
        lora_a, lora_b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        weight_OI = layer.get_base_layer().weight.detach().float()
        if weight_OI.shape != (lora_b.shape[0], lora_a.shape[1]):  # GPT-2 keeps its weights transposed
            weight_OI = weight_OI.T
        r, scaling = len(lora_a), layer.scaling[_ADAPTER]
        if r > min(weight_OI.shape):
            raise ModelError(
                f"{name} has only {min(weight_OI.shape)} directions, and r is {r}",
                where="method.r",
                remedy="Lower r, or leave out init_lora_weights.",
            )
        u_OR, s_R, v_IR = torch.svd_lowrank(
            weight_OI, min(r + _OVERSAMPLING, *weight_OI.shape), _SUBSPACE_ITERATIONS
        )
        root_R = (s_R[:r] / scaling).sqrt()
        with torch.no_grad():
            lora_a.copy_(root_R[:, None] * v_IR[:, :r].T)
            lora_b.copy_(u_OR[:, :r] * root_R)
        layer.principal_part = PrincipalPart(lora_a.detach().clone(), lora_b.detach().clone(), scaling)
        layer.get_base_layer().register_forward_hook(layer.principal_part)


def as_plain_adapter(model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of an adapter of `model` as those of a LoRA adapter on the untouched base."""
    plain = dict(tensors)
    for name, part in _principal_parts(model):
        name_a, name_b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        plain[name_a] = torch.cat([plain[name_a], part.a_RI])
        plain[name_b] = torch.cat([plain[name_b], -part.b_OR], dim=1)
    return plain


def from_plain_adapter(model: PeftModel, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inverse of `as_plain_adapter`, and let `model` start from where those weights started."""
    own = dict(tensors)
    for name, part in _principal_parts(model):
        name_a, name_b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        own[name_a], a_RI = own[name_a].chunk(2)
        own[name_b], minus_b_OR = own[name_b].chunk(2, dim=1)
        part.a_RI.copy_(a_RI)
        part.b_OR.copy_(-minus_b_OR)
    return own


def as_plain_config(model: PeftModel) -> Any:
    """Return a copy of the adapter's configuration, fit for what `as_plain_adapter` returns."""
    config = copy.copy(model.peft_config[_ADAPTER])
    for _, part in _principal_parts(model):
        config.r = 2 * len(part.a_RI)
        scaled = part.scaling * config.r
        config.lora_alpha = int(scaled) if scaled == int(scaled) else scaled
        config.use_rslora = False
        break
    return config


def _principal_parts(model: PeftModel) -> Iterator[tuple[str, PrincipalPart]]:
    for name, layer in _lora_layers(model):
        if (part := getattr(layer, "principal_part", None)) is not None:
            yield name, part


def _lora_layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module
