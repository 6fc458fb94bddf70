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
    """All of `project`; the adapters' weights come beside their layers, so that autograd knows them.

    An adapter's factor goes into its first half, where it is one pass over all adapters of a group. Tensors
    of ranks are small; on a GPU it is their number that costs, so they are made once, for both passes.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_TI: torch.Tensor, projections: tuple[Projection, ...], *factors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        adapted = [one for one in projections if one.rank]
        ctx.groups = _groups_of(adapted)
        ups = [up_Or.to(hidden_TI.dtype) for up_Or in factors[1::2]]
        downs, inner = [], [hidden_TI] * len(adapted)
        for group in ctx.groups:
            downs.append(_narrow([factors[2 * place] for place in group.places], group, hidden_TI.dtype))
            seen_TI = hidden_TI if group.mask is None else hidden_TI * group.mask.draw(hidden_TI)
            inner_TR = functional.linear(seen_TI, downs[-1])
            for place, inner_Tr in zip(group.places, torch.split(inner_TR, group.ranks, dim=1), strict=True):
                inner[place] = inner_Tr
        of_adapted = iter(zip(inner, ups, strict=True))
        outputs = []
        for one in projections:
            if not one.rank:
                outputs.append(functional.linear(hidden_TI, one.dense_weight(), one.bias_O))
                continue
            # The small product first: adding the large one to it is part of that product, and the other way
            # round it is a pass over memory.
            output_TO = functional.linear(*next(of_adapted), one.bias_O)
            outputs.append(output_TO.addmm_(hidden_TI, one.dense_weight().t()))
        ctx.projections = projections
        ctx.save_for_backward(hidden_TI if adapted else None, *downs, *ups, *inner)
        ctx.numbers = [factor.dtype for factor in factors]
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_TI, *saved = ctx.saved_tensors
        num_groups, num_adapted = len(ctx.groups), len(ctx.numbers) // 2
        downs, ups, inner = saved[:num_groups], saved[num_groups:-num_adapted], saved[-num_adapted:]
        of_adapted = [
            gradient_TO for one, gradient_TO in zip(ctx.projections, gradients, strict=True) if one.rank
        ]
        d_factors: list[torch.Tensor | None] = [None] * len(ctx.numbers)
        for place, (gradient_TO, inner_Tr) in enumerate(zip(of_adapted, inner, strict=True)):
            d_factors[2 * place + 1] = (gradient_TO.t() @ inner_Tr).to(ctx.numbers[2 * place + 1])
        d_hidden_TI: torch.Tensor | None = None
        for group, downs_RI in zip(ctx.groups, downs, strict=True):
            mask_TI = None if group.mask is None else group.mask.draw(hidden_TI)
            d_inner_TR = _side_by_side([of_adapted[place] @ ups[place] for place in group.places])
            d_downs_RI = d_inner_TR.t() @ (hidden_TI if mask_TI is None else hidden_TI * mask_TI)
            d_downs_RI = d_downs_RI.to(ctx.numbers[2 * group.places[0]]).mul_(group.factor)
            for place, d_down_rI in zip(group.places, torch.split(d_downs_RI, group.ranks), strict=True):
                d_factors[2 * place] = d_down_rI
            if not ctx.needs_input_grad[0]:
                continue
            if mask_TI is None:
                d_hidden_TI = _add_product(d_hidden_TI, d_inner_TR, downs_RI)
            else:
                through_TI = (d_inner_TR @ downs_RI).mul_(mask_TI)
                d_hidden_TI = through_TI if d_hidden_TI is None else d_hidden_TI.add_(through_TI)
        if ctx.needs_input_grad[0]:  # the large products last, as in the forward pass
            for one, gradient_TO in zip(ctx.projections, gradients, strict=True):
                d_hidden_TI = _add_product(d_hidden_TI, gradient_TO, one.dense_weight())
        return d_hidden_TI, None, *d_factors


@dataclass(frozen=True, slots=True)
class _Group:
    """Adapters whose first halves are one product: without dropout all of one factor, else each by itself.

    `places` are theirs among the adapters of a call.
    """

    places: tuple[int, ...]
    ranks: tuple[int, ...]
    factor: float
    mask: Mask | None


def _groups_of(adapted: Sequence[Projection]) -> list[_Group]:
    shared: dict[float, list[int]] = {}
    groups = []
    for place, one in enumerate(adapted):
        if one.mask is None:
            shared.setdefault(one.factor, []).append(place)
        else:
            groups.append(_Group((place,), (one.rank,), one.factor, one.mask))
    for factor, places in shared.items():
        groups.append(_Group(tuple(places), tuple(adapted[place].rank for place in places), factor, None))
    return groups


def _narrow(downs: Sequence[torch.Tensor], group: _Group, dtype: torch.dtype) -> torch.Tensor:
    """Return the first halves of a group's adapters (R, I) times their factor, in `dtype`."""
    wide_RI = downs[0] if len(downs) == 1 else torch.cat(list(downs))
    return torch.mul(wide_RI, group.factor, out=torch.empty_like(wide_RI, dtype=dtype))


def _side_by_side(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _add_product(
    sum_TI: torch.Tensor | None, gradient_TO: torch.Tensor, weight_OI: torch.Tensor
) -> torch.Tensor:
    if sum_TI is None:
        return gradient_TO @ weight_OI
    return sum_TI.addmm_(gradient_TO, weight_OI)
