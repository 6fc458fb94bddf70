"""The compiled loss against torch's cross-entropy, through the function that models call."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from llamafarm.kernels.compiled import kernels_for
from llamafarm.kernels.cpu import loss as compiled
from llamafarm.kernels.loss import Head, sum_head_loss

pytestmark = pytest.mark.usefixtures("library")

BOTH = [torch.float32, torch.bfloat16]


def dense_loss(hidden: torch.Tensor, head: Head, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss from logits in full, in fp32."""
    logits = hidden @ head.weight_VD.float().t() * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return functional.cross_entropy(logits, targets, reduction="sum")


@settings(max_examples=60, deadline=None)
@given(
    num_positions=st.integers(1, 40) | st.sampled_from([255, 256, 257, 300]),
    num_tokens=st.sampled_from([2, 15, 16, 17, 50, 301, 1003]),
    scale=st.sampled_from([1.0, 0.0625, 2.0]),
    softcap=st.none() | st.sampled_from([2.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_it_is_the_cross_entropy_of_the_logits(
    tools: SimpleNamespace,
    num_positions: int,
    num_tokens: int,
    scale: float,
    softcap: float | None,
    seed: int,
) -> None:
    hidden, weight = tools.draw(seed, num_positions, 16), tools.draw(seed + 1, num_tokens, 16)
    random = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_tokens, (num_positions,), generator=random)
    for dtype in BOTH:
        assert kernels_for(hidden.to(dtype), "loss") is compiled
        head = Head(weight.to(dtype), scale, softcap)
        leaf = hidden.to(dtype, copy=True).requires_grad_()
        full = leaf.detach().float().requires_grad_()
        loss, expected = sum_head_loss(leaf, head, targets), dense_loss(full, head, targets)
        (gradient,), (wanted,) = torch.autograd.grad(loss / 7, leaf), torch.autograd.grad(expected / 7, full)
        assert loss.dtype == torch.float32 and gradient.dtype == dtype
        assert tools.are_close([gradient], [wanted])
        rtol = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(loss, expected, rtol=rtol, atol=rtol * num_positions)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("num_tokens", [3, 16, 37])
@pytest.mark.parametrize("logit", [60.0, 128.0, 1024.0, 20480.0])
def test_a_confident_prediction_that_is_wrong_has_its_whole_loss(
    dtype: torch.dtype, num_tokens: int, logit: float
) -> None:
    weight = torch.zeros(num_tokens, 1, dtype=dtype)
    weight[1], weight[-1] = 1.0, -1.0
    hidden = torch.tensor([[logit], [logit], [logit]], dtype=dtype).requires_grad_()
    # Expected, surprised by twice the logit, surprised by the logit.
    loss = sum_head_loss(hidden, Head(weight), torch.tensor([1, num_tokens - 1, 0]))
    assert loss.item() == pytest.approx(3 * logit, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(gradient.float(), torch.tensor([[0.0], [2.0], [1.0]]), rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [2, 36])
def test_logits_that_are_no_numbers_give_no_number(
    tools: SimpleNamespace, dtype: torch.dtype, softcap: float | None, wrong: float, place: int
) -> None:
    """Of a token that is no target: one in a whole vector of the vocabulary, one in the part at its end."""
    logits = tools.draw(1, 3, 37).to(dtype)
    logits[1, place] = wrong
    before = logits.float().clone()
    losses = compiled.loss_and_gradient(logits, torch.tensor([0, 1, 5]), 1.0, softcap, 1.0)
    assert losses[[0, 2]].isfinite().all() and logits[[0, 2]].isfinite().all()
    if wrong == float("inf") and softcap:
        bounded = softcap * torch.tanh(before / softcap)
        torch.testing.assert_close(losses[1], functional.cross_entropy(bounded[1], torch.tensor(1)))
    else:
        assert losses[1].isnan() and logits[1].isnan().all()


@pytest.mark.parametrize("dtype", BOTH)
def test_a_state_that_is_no_number_gives_no_number(tools: SimpleNamespace, dtype: torch.dtype) -> None:
    hidden = tools.draw(1, 5, 8).to(dtype)
    hidden[3, 2] = float("nan")
    hidden.requires_grad_()
    loss = sum_head_loss(hidden, Head(tools.draw(2, 37, 8).to(dtype)), torch.arange(5))
    assert loss.isnan()
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient[3].isnan().all()
    assert gradient[[0, 1, 2, 4]].isfinite().all()


def test_rows_of_a_wider_buffer_and_nothing_beside_them(tools: SimpleNamespace) -> None:
    buffer = tools.draw(1, 6, 50)
    logits = buffer[:, 3:40]
    before = buffer.clone()
    targets = torch.tensor([0, 36, 5, 5, 1, 16])
    losses = compiled.loss_and_gradient(logits, targets, 1.0, None, 1.0)
    leaf = before[:, 3:40].clone().requires_grad_()
    expected = functional.cross_entropy(leaf, targets, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    assert tools.are_close([losses, logits], [expected, gradient])
    assert torch.equal(buffer[:, :3], before[:, :3]) and torch.equal(buffer[:, 40:], before[:, 40:])


def test_the_same_bits_from_one_thread_and_from_two(tools: SimpleNamespace, threads: None) -> None:
    results = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        logits = tools.draw(1, 33, 301)
        results.append((compiled.loss_and_gradient(logits, torch.arange(33), 0.5, 30.0, 1.0), logits))
    assert all(map(torch.equal, *results))


def test_without_a_compiler_plain_torch_does_it(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the library is called")

    monkeypatch.setattr("llamafarm.kernels.cpu.choice.why_not_compiled", lambda: "no compiler")
    monkeypatch.setattr(compiled, "call", fail)
    hidden, head = tools.draw(1, 21, 8).requires_grad_(), Head(tools.draw(2, 37, 8), 0.5, 4.0)
    assert kernels_for(hidden, "loss") is None
    targets = torch.arange(21)
    found, wanted = (
        (loss, *torch.autograd.grad(loss, hidden))
        for loss in (sum_head_loss(hidden, head, targets), dense_loss(hidden, head, targets))
    )
    assert tools.are_close(found, wanted)
