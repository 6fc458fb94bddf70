"""What a block computes element by element: norms, rotary positions, the gate; forward and gradient by hand.

Each does in a few passes what autograd takes many for, and keeps little more than its inputs. Weights are
frozen and get no gradient. Where kernels are compiled each is one (`compiled`). The plain twins are in
`reference`.

Axes: T tokens, D the size of what is normed or of a head, N heads, I the feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from llamafarm.kernels.compiled import kernels_for


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation function and its gradient: from the outer gradient and the input."""

    name: str
    compute: Callable[[torch.Tensor], torch.Tensor]
    backward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _tanh_gelu(gate_TI: torch.Tensor) -> torch.Tensor:
    return functional.gelu(gate_TI, approximate="tanh")


def _tanh_gelu_backward(d_activated_TI: torch.Tensor, gate_TI: torch.Tensor) -> torch.Tensor:
    d_gate_TI: torch.Tensor = torch.ops.aten.gelu_backward(d_activated_TI, gate_TI, approximate="tanh")
    return d_gate_TI


ACTIVATIONS = {
    "silu": Activation("silu", functional.silu, torch.ops.aten.silu_backward),
    "gelu_tanh": Activation("gelu_tanh", _tanh_gelu, _tanh_gelu_backward),
    "gelu": Activation("gelu", functional.gelu, torch.ops.aten.gelu_backward),
}


def normalize(hidden_TD: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Return x / sqrt(mean(x²) + epsilon) * weight over the last axis (arXiv:1910.07467).

    `weight_D` is in fp32 and frozen; the result is in the numbers of `hidden_TD`.
    """
    normed_TD: torch.Tensor = _Normalization.apply(hidden_TD, weight_D, epsilon)  # type: ignore[no-untyped-call]
    return normed_TD


def rotate(heads_TND: torch.Tensor, cosine_TE: torch.Tensor, sine_TE: torch.Tensor) -> torch.Tensor:
    """Return heads at their rotary positions (arXiv:2104.09864), halves paired as in Llama.

    The first E elements of each head are rotated, the others stay.
    """
    rotated_TND: torch.Tensor = _Rotation.apply(heads_TND, cosine_TE, sine_TE)  # type: ignore[no-untyped-call]
    return rotated_TND


def gate(gate_TI: torch.Tensor, up_TI: torch.Tensor, activation: Activation) -> torch.Tensor:
    """Return activation(gate) * up, of which only the two inputs are kept (arXiv:2002.05202)."""
    gated_TI: torch.Tensor = _Gate.apply(gate_TI, up_TI, activation)  # type: ignore[no-untyped-call]
    return gated_TI


class _Normalization(torch.autograd.Function):
    """`normalize`, in fp32 inside."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
        if compiled := kernels_for(hidden_TD, "elementwise"):
            normed_TD, inverse_R = compiled.normalize(hidden_TD, weight_D, epsilon)
            ctx.save_for_backward(hidden_TD, weight_D, inverse_R)
            return normed_TD  # type: ignore[no-any-return]
        normed_TD = hidden_TD.float()
        size = normed_TD.shape[-1]
        length_T1 = torch.linalg.vector_norm(normed_TD, dim=-1, keepdim=True)
        inverse_T1 = length_T1.square_().div_(size).add_(epsilon).rsqrt_()
        ctx.save_for_backward(hidden_TD, weight_D, inverse_T1)
        normed_TD = torch.mul(normed_TD, inverse_T1).mul_(weight_D)
        return normed_TD.to(hidden_TD.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_TD, weight_D, inverse_T1 = ctx.saved_tensors
        if compiled := kernels_for(hidden_TD, "elementwise"):
            return compiled.normalize_backward(gradients[0], hidden_TD, weight_D, inverse_T1), None, None
        scaled_TD = hidden_TD.float() * inverse_T1
        d_scaled_TD = gradients[0].float() * weight_D
        along_T1 = torch.linalg.vecdot(d_scaled_TD, scaled_TD)[..., None].div_(-hidden_TD.shape[-1])
        d_hidden_TD = d_scaled_TD.addcmul_(scaled_TD, along_T1).mul_(inverse_T1)
        return d_hidden_TD.to(hidden_TD.dtype), None, None


class _Rotation(torch.autograd.Function):
    """`rotate`; its gradient is rotated back."""

    @staticmethod
    def forward(
        ctx: Any, heads_TND: torch.Tensor, cosine_TE: torch.Tensor, sine_TE: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cosine_TE, sine_TE)
        return _rotate(heads_TND, cosine_TE, sine_TE, sign=1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cosine_TE, sine_TE = ctx.saved_tensors
        return _rotate(gradients[0], cosine_TE, sine_TE, sign=-1), None, None


def _rotate(
    heads_TND: torch.Tensor, cosine_TE: torch.Tensor, sine_TE: torch.Tensor, *, sign: int
) -> torch.Tensor:
    if compiled := kernels_for(heads_TND, "elementwise"):
        turned_TND: torch.Tensor = compiled.rotate(heads_TND, cosine_TE, sine_TE, sign)
        return turned_TND
    half = cosine_TE.shape[-1] // 2
    cosine_T1E, sine_T1E = cosine_TE[:, None, :half], sine_TE[:, None, :half]
    first, second = heads_TND[..., :half], heads_TND[..., half : 2 * half]
    rotated_TND = torch.empty(heads_TND.shape, dtype=heads_TND.dtype, device=heads_TND.device)
    rotated_first, rotated_second = rotated_TND[..., :half], rotated_TND[..., half : 2 * half]
    torch.mul(first, cosine_T1E, out=rotated_first).addcmul_(second, sine_T1E, value=-sign)
    torch.mul(second, cosine_T1E, out=rotated_second).addcmul_(first, sine_T1E, value=sign)
    rotated_TND[..., 2 * half :] = heads_TND[..., 2 * half :]
    return rotated_TND


class _Gate(torch.autograd.Function):
    """`gate`."""

    @staticmethod
    def forward(ctx: Any, gate_TI: torch.Tensor, up_TI: torch.Tensor, activation: Activation) -> torch.Tensor:
        ctx.save_for_backward(gate_TI, up_TI)
        ctx.activation = activation
        if compiled := kernels_for(gate_TI, "elementwise"):
            gated_TI: torch.Tensor = compiled.gate(gate_TI, up_TI, activation.name)
            return gated_TI
        return activation.compute(gate_TI).mul_(up_TI)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate_TI, up_TI = ctx.saved_tensors
        d_gated_TI, activation = gradients[0], ctx.activation
        if compiled := kernels_for(gate_TI, "elementwise"):
            return *compiled.gate_backward(d_gated_TI, gate_TI, up_TI, activation.name), None
        d_up_TI = activation.compute(gate_TI).mul_(d_gated_TI)
        return activation.backward(d_gated_TI * up_TI, gate_TI), d_up_TI, None
