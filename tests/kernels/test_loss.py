"""The summed cross-entropy against logarithms taken by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.kernels.loss import sum_cross_entropy


@settings(max_examples=40, deadline=None)
@given(num_positions=st.integers(1, 12), vocabulary=st.integers(2, 30), seed=st.integers(0, 1000))
def test_the_loss_is_the_sum_of_negative_log_likelihoods(
    num_positions: int, vocabulary: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (5 * torch.randn(num_positions, vocabulary, generator=generator)).requires_grad_()
    targets = torch.randint(vocabulary, (num_positions,), generator=generator)
    loss = sum_cross_entropy(logits, targets)
    expected = -torch.log_softmax(logits.double(), dim=-1)[range(num_positions), targets].sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    (ours,) = torch.autograd.grad(loss, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_three_likelihoods_by_hand() -> None:
    likelihoods = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])
    loss = sum_cross_entropy(likelihoods.log(), torch.tensor([0, 2]))
    assert loss.item() == pytest.approx(math.log(2) + math.log(10), rel=1e-6)


def test_half_precision_logits_are_summed_in_full_precision() -> None:
    logits = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.zeros(4000, dtype=torch.long)
    loss = sum_cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(sum_cross_entropy(logits.double(), targets).item(), rel=1e-5)


def test_no_supervised_token_is_a_loss_of_zero() -> None:
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = sum_cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    assert loss.item() == 0.0
    loss.backward()
