"""Frozen linear layers with LoRA adapters, forward and gradient by hand (arXiv:2106.09685).

Layers that read the same input go together: it is kept once, their gradients of it add up in place, and
their small products are one. No gradient of a frozen weight is formed, nothing is cast on the way: the
adapters' fp32 weights are rounded once to the numbers of the input. The plain twin is `reference.project`.

Axes: T tokens, I inputs, O outputs, R the ranks of all adapters together, r the rank of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional


class Mask(Protocol):
    """Dropout of an adapter's input: which elements are kept, the same at every call, and their scale."""

    @property
    def scale(self) -> float:
        """Return what kept elements are multiplied with."""

    def draw(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Return a bool tensor of the input's shape."""


class HeldWeight(Protocol):
    """A frozen weight (O, I) in another form, such as 4 bits: made dense for each product, then let go."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the numbers that it comes in."""

    def dense(self) -> torch.Tensor:
        """Return it as a tensor (O, I)."""


@dataclass(frozen=True, slots=True)
class Projection:
    """A frozen linear layer, and the adapter on it if it has one; `mask` is the adapter's dropout."""

    weight_OI: torch.Tensor | HeldWeight
    bias_O: torch.Tensor | None = None
    down_rI: torch.Tensor | None = None
    up_Or: torch.Tensor | None = None
    scaling: float = 1.0
    mask: Mask | None = None

    @property
    def factor(self) -> float:
        """Return what the adapter's output is multiplied with: its scaling, and that of the dropout."""
        return self.scaling if self.mask is None else self.scaling * self.mask.scale

    @property
    def rank(self) -> int:
        """Return the adapter's rank; 0 without one."""
        return 0 if self.down_rI is None else len(self.down_rI)

    def dense_weight(self) -> torch.Tensor:
        """Return the frozen weight (O, I)."""
        return self.weight_OI if isinstance(self.weight_OI, torch.Tensor) else self.weight_OI.dense()


def project(hidden_TI: torch.Tensor, projections: Sequence[Projection]) -> tuple[torch.Tensor, ...]:
    """Return what each of the layers makes of `hidden_TI`, in order."""
    factors = [
        factor for one in projections if one.rank for factor in (one.down_rI, one.up_Or) if factor is not None
    ]
    outputs: tuple[torch.Tensor, ...] = _Project.apply(  # type: ignore[no-untyped-call]
        hidden_TI, tuple(projections), *factors
    )
    return outputs


class _Project(torch.autograd.Function):
    """All of `project`; the adapters' weights come beside their layers, so that autograd knows them."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TI: torch.Tensor, projections: tuple[Projection, ...], *factors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        downs = [factor.to(hidden_TI.dtype) for factor in factors[::2]]
        outputs, inner = [], []
        shared_TR = _through_shared(hidden_TI, projections, downs)
        taken, place = 0, 0
        for one in projections:
            if not one.rank:
                outputs.append(functional.linear(hidden_TI, one.dense_weight(), one.bias_O))
                continue
            if one.mask is not None:
                dropped_TI = hidden_TI * one.mask.draw(hidden_TI)
                inner_Tr = functional.linear(dropped_TI, downs[place])
            else:
                inner_Tr = shared_TR[:, taken : taken + one.rank]
                taken += one.rank
            # The small product first: adding the large one to it is part of that product, and the other way
            # round it is a pass over memory.
            output_TO = functional.linear(
                inner_Tr, _scaled(factors[2 * place + 1], one, hidden_TI.dtype), one.bias_O
            )
            outputs.append(output_TO.addmm_(hidden_TI, one.dense_weight().t()))
            inner.append(inner_Tr)
            place += 1
        ctx.projections = projections
        ctx.save_for_backward(hidden_TI if inner else None, *factors, *inner)
        ctx.num_factors = len(factors)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_TI, *saved = ctx.saved_tensors
        factors, inner = saved[: ctx.num_factors], saved[ctx.num_factors :]
        needs_input = ctx.needs_input_grad[0]
        d_hidden_TI: torch.Tensor | None = None
        d_factors: list[torch.Tensor | None] = [None] * ctx.num_factors
        shared: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        place = 0
        for one, gradient_TO in zip(ctx.projections, gradients, strict=True):
            if not one.rank:
                continue
            down_rI, up_Or = factors[2 * place], factors[2 * place + 1]
            d_inner_Tr = gradient_TO @ _scaled(up_Or, one, gradient_TO.dtype)
            d_up_Or = (gradient_TO.t() @ inner[place]).to(up_Or.dtype)
            d_factors[2 * place + 1] = d_up_Or.mul_(one.factor)
            if one.mask is None:
                shared.append((place, d_inner_Tr, down_rI))
            else:
                mask_TI = one.mask.draw(hidden_TI)
                d_factors[2 * place] = (d_inner_Tr.t() @ (hidden_TI * mask_TI)).to(down_rI.dtype)
                if needs_input:
                    dropped_TI = (d_inner_Tr @ down_rI.to(d_inner_Tr.dtype)).mul_(mask_TI)
                    d_hidden_TI = dropped_TI if d_hidden_TI is None else d_hidden_TI.add_(dropped_TI)
            place += 1
        if shared:
            d_inner_TR = torch.cat([d_inner_Tr for _, d_inner_Tr, _ in shared], dim=1)
            d_downs_RI = d_inner_TR.t() @ hidden_TI
            first = 0
            for place, d_inner_Tr, down_rI in shared:
                rank = d_inner_Tr.shape[1]
                d_factors[2 * place] = d_downs_RI[first : first + rank].to(down_rI.dtype)
                first += rank
            if needs_input:
                downs_RI = torch.cat([down_rI for _, _, down_rI in shared]).to(d_inner_TR.dtype)
                d_hidden_TI = _add_product(d_hidden_TI, d_inner_TR, downs_RI)
        if needs_input:  # the large products last, as in the forward pass
            for one, gradient_TO in zip(ctx.projections, gradients, strict=True):
                d_hidden_TI = _add_product(d_hidden_TI, gradient_TO, one.dense_weight())
        return d_hidden_TI, None, *d_factors


def _through_shared(
    hidden_TI: torch.Tensor, projections: Sequence[Projection], downs: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return the inputs through the first halves of all adapters without dropout, side by side."""
    adapted = [one for one in projections if one.rank]
    shared = [down_rI for one, down_rI in zip(adapted, downs, strict=True) if one.mask is None]
    if not shared:
        return hidden_TI.new_empty(len(hidden_TI), 0)
    return functional.linear(hidden_TI, torch.cat(shared))


def _scaled(up_Or: torch.Tensor, one: Projection, dtype: torch.dtype) -> torch.Tensor:
    return (up_Or * one.factor).to(dtype)


def _add_product(
    sum_TI: torch.Tensor | None, gradient_TO: torch.Tensor, weight_OI: torch.Tensor
) -> torch.Tensor:
    if sum_TI is None:
        return gradient_TO @ weight_OI
    return sum_TI.addmm_(gradient_TO, weight_OI)
