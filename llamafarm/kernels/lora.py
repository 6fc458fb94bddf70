"""Frozen linear layers with LoRA adapters, forward and gradient by hand (arXiv:2106.09685).

Layers that read the same input go together: it is kept once, their gradients of it are one sum, and their
small products are one. No gradient of a frozen weight is formed, nothing is cast on the way: the
adapters' fp32 weights are rounded once to the numbers of the input. The plain twin is `reference.project`.

Axes: T tokens, I inputs, O outputs, R the ranks of all adapters together, r the rank of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from llamafarm.kernels.products import HeldWeight, Term, multiply, multiply_turned


class Mask(Protocol):
    """Dropout of an adapter's input: which elements are kept, the same at every call, and their scale."""

    @property
    def scale(self) -> float:
        """Return what kept elements are multiplied with."""

    def draw(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Return a bool tensor of the input's shape."""


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
    outputs: tuple[torch.Tensor, ...] = _Project.apply(  # type: ignore[no-untyped-call]
        hidden_TI, tuple(projections), *_halves_of(projections)
    )
    return outputs


def _halves_of(projections: Sequence[Projection]) -> list[torch.Tensor]:
    """Return both halves of each adapter, in turn, as autograd has to know them."""
    return [half for one in projections if one.rank for half in (one.down_rI, one.up_Or) if half is not None]


class _Project(torch.autograd.Function):
    """All of `project`; the adapters' weights come beside their layers, so that autograd knows them."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TI: torch.Tensor, projections: tuple[Projection, ...], *halves: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        adapters = _Adapters.entered(hidden_TI, projections, halves)
        outputs = [
            multiply(terms, bias_O=one.bias_O)
            for one, terms in zip(projections, adapters.terms(hidden_TI), strict=True)
        ]
        ctx.save_for_backward(hidden_TI if halves else None, *adapters.tensors())
        ctx.projections, ctx.numbers = projections, [half.dtype for half in halves]
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_TI, *saved = ctx.saved_tensors
        adapters = _Adapters.of_tensors(ctx.projections, saved)
        found = adapters.backward(hidden_TI, gradients, ctx.numbers, passes_on=ctx.needs_input_grad[0])
        d_hidden_TI = multiply(found.terms, added_TO=found.added_TI) if found.terms else None
        return d_hidden_TI, None, *found.d_halves


@dataclass(frozen=True, slots=True)
class _Gradients:
    """Those of the adapters' halves, in turn, and the input's as a sum: of terms, and of what is added."""

    d_halves: list[torch.Tensor]
    terms: list[Term]
    added_TI: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Adapters:
    """The adapters of layers that read one input, and what came out of their first halves.

    An adapter's factor goes into its first half, where it is one pass over all adapters of a group. Tensors
    of ranks are small; on a GPU it is their number that costs, so they are made once, for both passes.
    `downs` have a tensor (R, I) for each group, `ups` (O, r) and `inner` (T, r) one for each adapter.
    """

    projections: Sequence[Projection]
    groups: Sequence[_Group]
    downs: Sequence[torch.Tensor]
    ups: Sequence[torch.Tensor]
    inner: Sequence[torch.Tensor]

    @staticmethod
    def entered(
        hidden_TI: torch.Tensor, projections: Sequence[Projection], halves: Sequence[torch.Tensor]
    ) -> _Adapters:
        """Send the input through the first halves; `halves` are both halves of each adapter, in fp32."""
        groups = _groups_of(projections)
        ups = [up_Or.to(hidden_TI.dtype) for up_Or in halves[1::2]]
        downs, inner = [], [hidden_TI] * len(ups)
        for group in groups:
            downs.append(_narrow([halves[2 * place] for place in group.places], group, hidden_TI.dtype))
            seen_TI = hidden_TI if group.mask is None else hidden_TI * group.mask.draw(hidden_TI)
            inner_TR = multiply([Term(seen_TI, downs[-1])])
            for place, inner_Tr in zip(
                group.places, torch.split(inner_TR, list(group.ranks), dim=1), strict=True
            ):
                inner[place] = inner_Tr
        return _Adapters(projections, groups, downs, ups, inner)

    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors, for `of_tensors`."""
        return [*self.downs, *self.ups, *self.inner]

    @staticmethod
    def of_tensors(projections: Sequence[Projection], tensors: Sequence[torch.Tensor]) -> _Adapters:
        """Return the adapters that `tensors` are of."""
        groups, num_adapted = _groups_of(projections), sum(one.rank > 0 for one in projections)
        ups_from, inner_from = len(groups), len(groups) + num_adapted
        downs, ups, inner = tensors[:ups_from], tensors[ups_from:inner_from], tensors[inner_from:]
        return _Adapters(projections, groups, downs, ups, inner)

    def terms(self, hidden_TI: torch.Tensor) -> list[list[Term]]:
        """Return for each layer the terms that its output is the sum of, beside its bias."""
        of_adapted = iter(zip(self.inner, self.ups, strict=True))
        return [
            [*([Term(*next(of_adapted))] if one.rank else []), Term(hidden_TI, one.weight_OI)]
            for one in self.projections
        ]

    def backward(
        self,
        hidden_TI: torch.Tensor | None,
        gradients: Sequence[torch.Tensor],
        numbers: Sequence[torch.dtype],
        *,
        passes_on: bool,
    ) -> _Gradients:
        """Return what follows from the outputs' gradients; no terms if the input gets none.

        `hidden_TI` is None where no layer has an adapter; `numbers` are those that the halves are in.
        """
        gradients = [gradient_TO.contiguous() for gradient_TO in gradients]
        of_adapted = [
            gradient_TO for one, gradient_TO in zip(self.projections, gradients, strict=True) if one.rank
        ]
        d_halves = [torch.empty(0)] * len(numbers)
        for place, (gradient_TO, inner_Tr) in enumerate(zip(of_adapted, self.inner, strict=True)):
            d_up_rO = multiply_turned(inner_Tr, gradient_TO)
            d_halves[2 * place + 1] = d_up_rO.t().to(numbers[2 * place + 1])
        terms: list[Term] = []
        added_TI: torch.Tensor | None = None
        for group, downs_RI in zip(self.groups, self.downs, strict=True):
            assert hidden_TI is not None
            mask_TI = None if group.mask is None else group.mask.draw(hidden_TI)
            d_inner_TR = _side_by_side([of_adapted[place] @ self.ups[place] for place in group.places])
            seen_TI = hidden_TI if mask_TI is None else hidden_TI * mask_TI
            d_downs_RI = multiply_turned(d_inner_TR, seen_TI, group.factor).to(numbers[2 * group.places[0]])
            for place, d_down_rI in zip(
                group.places, torch.split(d_downs_RI, list(group.ranks)), strict=True
            ):
                d_halves[2 * place] = d_down_rI
            if mask_TI is None:
                terms.append(Term(d_inner_TR, downs_RI, along=True))
            elif passes_on:
                through_TI = multiply([Term(d_inner_TR, downs_RI, along=True)]).mul_(mask_TI)
                added_TI = through_TI if added_TI is None else added_TI.add_(through_TI)
        terms += [
            Term(gradient_TO, one.weight_OI, along=True)
            for one, gradient_TO in zip(self.projections, gradients, strict=True)
        ]
        return _Gradients(d_halves, terms if passes_on else [], added_TI)


@dataclass(frozen=True, slots=True)
class _Group:
    """_Adapters whose first halves are one product: without dropout all of one factor, else each by itself.

    `places` are theirs among the adapters of a call.
    """

    places: tuple[int, ...]
    ranks: tuple[int, ...]
    factor: float
    mask: Mask | None


def _groups_of(projections: Sequence[Projection]) -> list[_Group]:
    adapted = [one for one in projections if one.rank]
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
