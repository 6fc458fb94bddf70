"""Sums of matrix products: by torch, or compiled where torch is slow.

Axes: T tokens, K what is summed over, O outputs, R ranks of adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from llamafarm.kernels.compiled import products_for


class HeldWeight(Protocol):
    """A frozen weight (O, I) in another form, such as 4 bits: made dense for each product, then let go."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the numbers that it comes in."""

    def dense(self) -> torch.Tensor:
        """Return it as a tensor (O, I)."""


class Term(NamedTuple):
    """One product of a sum: left (T, K) times right.

    `right` has a row for each output, (O, K), or `along` the sum, (K, O).
    """

    left_TK: torch.Tensor
    right: torch.Tensor | HeldWeight
    along: bool = False

    def right_factor(self) -> torch.Tensor:
        """Return the right factor as it is multiplied with."""
        right = self.right if isinstance(self.right, torch.Tensor) else self.right.dense()
        return right if self.along else right.t()


def multiply(
    terms: Sequence[Term],
    *,
    bias_O: torch.Tensor | None = None,
    added_TO: torch.Tensor | None = None,
    out_TO: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the sum of the terms, of a bias and of what is added; into `out_TO` if that is given.

    `added_TO` may be written over. Terms come with the small ones first: adding a large product to what is
    there is part of that product, and the other way round it is a pass over memory.
    """
    if compiled := products_for(terms):
        return compiled.multiply(terms, bias_O, added_TO, out_TO)  # type: ignore[no-any-return]
    sum_TO = added_TO
    if bias_O is not None:
        sum_TO = bias_O if sum_TO is None else sum_TO.add_(bias_O)
    for term in terms:
        if sum_TO is None:
            sum_TO = torch.mm(term.left_TK, term.right_factor(), out=out_TO)
        elif sum_TO is bias_O or (out_TO is not None and sum_TO is not out_TO):
            sum_TO = torch.addmm(sum_TO, term.left_TK, term.right_factor(), out=out_TO)
        else:
            sum_TO.addmm_(term.left_TK, term.right_factor())
    assert sum_TO is not None
    return sum_TO


def multiply_turned(left_TR: torch.Tensor, right_TO: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """Return left.T times right times `factor`, (R, O) in fp32."""
    if compiled := products_for([Term(left_TR, right_TO, along=True)], turned=True):
        return compiled.multiply_turned(left_TR, right_TO, factor)  # type: ignore[no-any-return]
    product_RO = (left_TR.t() @ right_TO).float()
    return product_RO if factor == 1.0 else product_RO.mul_(factor)
