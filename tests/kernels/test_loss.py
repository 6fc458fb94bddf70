"""The summed cross-entropy against logarithms taken by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.kernels.loss import (
    CHUNK_POSITIONS,
    Head,
    cross_entropies,
    head_losses,
    sum_cross_entropy,
    sum_head_loss,
)

pytestmark = pytest.mark.usefixtures("each_way")


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


@settings(max_examples=40, deadline=None)
@given(
    num_positions=st.integers(0, 300),
    num_tokens=st.sampled_from([2, 50, 301]),
    scale=st.sampled_from([1.0, 0.0625, 3.0]),
    softcap=st.none() | st.sampled_from([2.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_the_loss_of_a_frozen_head_is_that_of_its_logits(
    num_positions: int, num_tokens: int, scale: float, softcap: float | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_positions, 16, generator=generator)
    weight = torch.randn(num_tokens, 16, generator=generator)
    targets = torch.randint(num_tokens, (num_positions,), generator=generator)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        head = Head(weight.to(dtype), scale, softcap)
        fast_leaf = hidden.to(dtype).requires_grad_()
        plain_leaf = fast_leaf.detach().float().requires_grad_()
        logits = plain_leaf @ head.weight_VD.float().t() * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        expected = sum_cross_entropy(logits, targets)
        loss = sum_head_loss(fast_leaf, head, targets)
        with torch.no_grad():
            without_gradient = sum_head_loss(fast_leaf, head, targets)
        (found,) = torch.autograd.grad(loss / 7, fast_leaf)
        (wanted,) = torch.autograd.grad(expected / 7, plain_leaf)
        assert loss.dtype == torch.float32 and found.dtype == dtype
        if dtype == torch.float32:
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        elif num_positions:
            torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.05 * num_positions)
            angle = torch.nn.functional.cosine_similarity(found.float().flatten(), wanted.flatten(), dim=0)
            assert angle > 0.999
        torch.testing.assert_close(loss, without_gradient, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_beyond_what_a_chance_can_tell_is_exact_all_the_same(dtype: torch.dtype) -> None:
    hidden = torch.tensor([[200.0], [1.0]], dtype=dtype).requires_grad_()
    head = Head(torch.tensor([[1.0], [0.0]], dtype=dtype))
    loss = sum_head_loss(hidden, head, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx(200.0 + 0.3133, rel=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad.float(), torch.tensor([[1.0], [-0.2689]]), rtol=0.01, atol=0)


def dense_logits(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    """Return the logits that a head stands for, all at once and in fp32."""
    logits = hidden.float() @ head.weight_VD.float().t() * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


@settings(max_examples=40, deadline=None)
@given(
    num_positions=st.integers(0, 300),
    num_tokens=st.sampled_from([2, 50, 301]),
    scale=st.sampled_from([1.0, 0.0625, 3.0]),
    softcap=st.none() | st.sampled_from([2.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_the_losses_of_a_head_are_the_cross_entropies_of_its_dense_logits(
    num_positions: int, num_tokens: int, scale: float, softcap: float | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_positions, 16, generator=generator)
    weight = torch.randn(num_tokens, 16, generator=generator)
    targets = torch.randint(num_tokens, (num_positions,), generator=generator)
    for dtype, rtol, atol in ((torch.float32, 1e-5, 1e-4), (torch.bfloat16, 0.02, 0.3)):
        head = Head(weight.to(dtype), scale, softcap)
        losses = head_losses(hidden.to(dtype), head, targets)
        expected = torch.nn.functional.cross_entropy(
            dense_logits(hidden.to(dtype), head), targets, reduction="none"
        )
        assert losses.dtype == torch.float32 and losses.shape == (num_positions,)
        torch.testing.assert_close(losses, expected, rtol=rtol, atol=atol)
        total = sum_head_loss(hidden.to(dtype), head, targets)
        torch.testing.assert_close(losses.sum(), total, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("num_positions", [1, 15, 16, 17, 255, 256, 257, 512, 600])
def test_a_loss_stands_at_its_own_position_whatever_chunk_it_falls_into(num_positions: int) -> None:
    assert CHUNK_POSITIONS["cpu"] == 256
    hidden = torch.arange(num_positions, dtype=torch.float32)[:, None] / 100
    head = Head(torch.tensor([[0.0], [1.0]]))
    losses = head_losses(hidden, head, torch.zeros(num_positions, dtype=torch.long))
    torch.testing.assert_close(losses, torch.log1p(hidden[:, 0].exp()))


@settings(max_examples=40, deadline=None)
@given(num_positions=st.integers(0, 12), vocabulary=st.integers(1, 30), seed=st.integers(0, 1000))
def test_cross_entropies_are_the_negative_log_likelihoods_of_each_target(
    num_positions: int, vocabulary: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(num_positions, vocabulary, generator=generator)
    targets = torch.randint(vocabulary, (num_positions,), generator=generator)
    for given_logits in (logits, logits.bfloat16(), logits.half()):
        losses = cross_entropies(given_logits, targets)
        expected = -torch.log_softmax(given_logits.double(), dim=-1)[range(num_positions), targets]
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(losses.sum(), sum_cross_entropy(given_logits, targets))
