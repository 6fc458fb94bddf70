"""Norms, rotary positions and the gate in one kernel each, against their plain twins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from llamafarm.kernels import elementwise, reference


def assert_alike(
    fast: Callable[..., torch.Tensor], plain: Callable[..., torch.Tensor], inputs: list[torch.Tensor]
) -> None:
    """Compare outputs and gradients: in fp32 to 1e-5, in 16 bits by their angle to those of fp32."""
    leaves = [one.clone().requires_grad_() for one in inputs]
    expected = plain(*leaves)
    outer = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected.device)
    expected_all = (expected, *torch.autograd.grad(expected, leaves, outer))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        leaves = [one.to(dtype, copy=True).requires_grad_() for one in inputs]
        output = fast(*leaves)
        found = (output, *torch.autograd.grad(output, leaves, outer.to(dtype)))
        for ours, theirs in zip(found, expected_all, strict=True):
            assert ours.dtype == dtype
            if dtype == torch.float32:
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            else:
                angle = functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), dim=0)
                assert angle > 0.999


def random_tensor(device: torch.device, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize("shape", [(1, 8), (7, 12), (3, 4, 64), (9, 576), (5, 4096), (300, 2, 128)])
def test_the_norm(device: torch.device, shape: tuple[int, ...]) -> None:
    hidden, weight = random_tensor(device, *shape), random_tensor(device, shape[-1], seed=1) + 1
    assert_alike(
        lambda hidden: elementwise.normalize(hidden, weight, 1e-5),
        lambda hidden: reference.normalize(hidden, weight, 1e-5),
        [hidden],
    )


def test_the_norm_of_a_view(device: torch.device) -> None:
    both, weight = random_tensor(device, 6, 5, 64), torch.ones(64, device=device)
    assert_alike(
        lambda both: elementwise.normalize(both[:, :3], weight, 1e-6),
        lambda both: reference.normalize(both[:, :3], weight, 1e-6),
        [both],
    )


@pytest.mark.parametrize(
    ("tokens", "heads", "half", "rest"),
    [(1, 1, 1, 0), (5, 3, 4, 0), (4, 9, 32, 0), (3, 2, 16, 6), (6, 40, 64, 0)],
)
def test_the_rotation(device: torch.device, tokens: int, heads: int, half: int, rest: int) -> None:
    angles = random_tensor(device, tokens, half)
    cosine, sine = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def rotate_with(rotate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        # Heads are a part of a wider projection, as where queries, keys and values come from one layer.
        return lambda wide: rotate(wide[:, :heads], cosine.to(wide.dtype), sine.to(wide.dtype))

    wide = random_tensor(device, tokens, heads + 2, 2 * half + rest)
    assert_alike(rotate_with(elementwise.rotate), rotate_with(reference.rotate), [wide])


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("silu", functional.silu),
        ("gelu", functional.gelu),
        ("gelu_tanh", lambda gate: functional.gelu(gate, approximate="tanh")),
    ],
)
@pytest.mark.parametrize("width", [20, 5000])
def test_the_gate(
    device: torch.device, name: str, plain: Callable[[torch.Tensor], torch.Tensor], width: int
) -> None:
    activation = elementwise.ACTIVATIONS[name]
    assert_alike(
        lambda both: elementwise.gate(*both.chunk(2, dim=-1), activation),
        lambda both: plain(both.chunk(2, dim=-1)[0]) * both.chunk(2, dim=-1)[1],
        [2 * random_tensor(device, 7, 2 * width)],
    )
