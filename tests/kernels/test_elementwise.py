"""Norms, rotary positions and the gate against their plain twins, forward and gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from llamafarm.kernels import elementwise, reference

pytestmark = pytest.mark.usefixtures("each_way")

SHAPES = st.tuples(st.integers(1, 9), st.sampled_from([2, 8, 12, 64]))


def random_tensors(seed: int, *shapes: Sequence[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


def assert_alike(
    fast: Callable[..., torch.Tensor], plain: Callable[..., torch.Tensor], inputs: list[torch.Tensor]
) -> None:
    """Compare outputs and gradients: in fp32 to 1e-5, in bf16 by the angle between them and those of fp32."""
    leaves = [one.clone().requires_grad_() for one in inputs]
    expected = plain(*leaves)
    outer = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected_gradients = torch.autograd.grad(expected, leaves, outer)
    output = fast(*leaves)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(output, leaves, outer), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    halves = [one.bfloat16().requires_grad_() for one in inputs]
    output = fast(*halves)
    assert output.dtype == torch.bfloat16
    found = [output, *torch.autograd.grad(output, halves, outer.bfloat16())]
    for ours, theirs in zip(found, (expected, *expected_gradients), strict=True):
        assert ours.dtype == torch.bfloat16
        if theirs.abs().max() > 1e-3:
            assert functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), dim=0) > 0.999


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, heads=st.integers(0, 3), seed=st.integers(0, 99), offset=st.sampled_from([0.0, 1.0]))
def test_the_norm(shape: tuple[int, int], heads: int, seed: int, offset: float) -> None:
    full = shape if not heads else (shape[0], heads, shape[1])
    hidden, weight = random_tensors(seed, full, shape[1:])
    assert_alike(
        lambda hidden: elementwise.normalize(hidden, weight + offset, 1e-5),
        lambda hidden: reference.normalize(hidden, weight + offset, 1e-5),
        [hidden],
    )


@settings(max_examples=30, deadline=None)
@given(
    num_tokens=st.integers(1, 9),
    num_heads=st.integers(1, 4),
    half=st.sampled_from([1, 4, 16]),
    rest=st.sampled_from([0, 6]),
    seed=st.integers(0, 99),
)
def test_the_rotation(num_tokens: int, num_heads: int, half: int, rest: int, seed: int) -> None:
    heads, angles = random_tensors(seed, (num_tokens, num_heads, 2 * half + rest), (num_tokens, half))
    cosine, sine = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def with_tables(rotate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda heads: rotate(heads, cosine.to(heads.dtype), sine.to(heads.dtype))

    assert_alike(with_tables(elementwise.rotate), with_tables(reference.rotate), [heads])


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("silu", functional.silu),
        ("gelu", functional.gelu),
        ("gelu_tanh", lambda gate: functional.gelu(gate, approximate="tanh")),
    ],
)
def test_the_gate(name: str, plain: Callable[[torch.Tensor], torch.Tensor]) -> None:
    activation = elementwise.ACTIVATIONS[name]
    assert_alike(
        lambda gate, up: elementwise.gate(gate, up, activation),
        lambda gate, up: plain(gate) * up,
        random_tensors(3, (7, 20), (7, 20)),
    )
    halves = random_tensors(4, (5, 16))[0]
    assert_alike(
        lambda both: elementwise.gate(*both.chunk(2, dim=-1), activation),
        lambda both: plain(both.chunk(2, dim=-1)[0]) * both.chunk(2, dim=-1)[1],
        [halves],
    )
