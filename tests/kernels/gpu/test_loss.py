"""The loss and its gradient in one kernel, against torch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from llamafarm.kernels.loss import Head, cross_entropies, sum_head_loss


@pytest.mark.parametrize("vocabulary", [3, 100, 5000, 9001])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 30.0)])
def test_the_loss_of_a_head(
    device: torch.device, vocabulary: int, scale: float, softcap: float | None
) -> None:
    random = torch.Generator().manual_seed(0)
    hidden = (3 * torch.randn(11, 16, generator=random)).to(device).requires_grad_()
    weight = torch.randn(vocabulary, 16, generator=random).to(device)
    targets = torch.randint(vocabulary, (11,), generator=random).to(device)
    logits = hidden @ weight.t() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    expected = cross_entropies(logits, targets).sum()
    (d_expected,) = torch.autograd.grad(expected, hidden)
    head = Head(weight, scale, softcap)
    loss = sum_head_loss(hidden, head, targets)
    (d_hidden,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(d_hidden, d_expected, rtol=1e-4, atol=1e-4)
    for dtype in (torch.bfloat16, torch.float16):
        half = hidden.detach().to(dtype).requires_grad_()
        loss = sum_head_loss(half, Head(weight.to(dtype), scale, softcap), targets)
        (d_half,) = torch.autograd.grad(loss, half)
        assert loss.item() == pytest.approx(expected.item(), rel=0.02)
        assert functional.cosine_similarity(d_half.float().flatten(), d_expected.flatten(), dim=0) > 0.999


def test_a_target_without_a_chance_has_its_whole_loss(device: torch.device) -> None:
    weight = torch.tensor([[1000.0], [0.0], [-1000.0]], device=device)
    hidden = torch.ones(1, 1, device=device, requires_grad=True)
    loss = sum_head_loss(hidden, Head(weight), torch.tensor([2], device=device))
    assert loss.item() == pytest.approx(2000)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert float(gradient) == pytest.approx(2000)
