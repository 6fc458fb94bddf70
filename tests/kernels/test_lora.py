"""Frozen layers with adapters against their plain twin, forward and gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from llamafarm.kernels import lora, reference
from llamafarm.kernels.dropout import DropoutPlan, RowDropout
from llamafarm.kernels.lora import Projection

pytestmark = pytest.mark.usefixtures("each_way")

LENGTHS = (5, 8)


@st.composite
def projections(draw: st.DrawFn) -> tuple[torch.Tensor, list[Projection]]:
    """Return an input and layers of it: of every size, with and without biases, adapters and dropout."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    plan = DropoutPlan(draw(st.integers(0, 9)))
    plan.enter_pack(3, (4, 7), LENGTHS)
    num_inputs = draw(st.sampled_from([1, 6, 32]))
    layers = []
    for place in range(draw(st.integers(1, 4))):
        num_outputs, rank = draw(st.sampled_from([1, 5, 24])), draw(st.integers(0, 3))
        layer = Projection(torch.randn(num_outputs, num_inputs, generator=generator))
        if draw(st.booleans()):
            layer = replace(layer, bias_O=torch.randn(num_outputs, generator=generator))
        if rank:
            dropout = RowDropout(draw(st.sampled_from([0.0, 0.4])), f"layer {place}", plan).train()
            layer = replace(
                layer,
                down_rI=torch.randn(rank, num_inputs, generator=generator).requires_grad_(),
                up_Or=torch.randn(num_outputs, rank, generator=generator).requires_grad_(),
                scaling=draw(st.sampled_from([0.5, 2.0])),
                mask=dropout.mask(),
            )
        layers.append(layer)
    return torch.randn(sum(LENGTHS), num_inputs, generator=generator), layers


def factors_of(layers: list[Projection]) -> list[torch.Tensor]:
    return [factor for one in layers for factor in (one.down_rI, one.up_Or) if factor is not None]


def outer_gradients(outputs: tuple[torch.Tensor, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(output.shape, generator=generator).to(dtype) for output in outputs]


@settings(max_examples=60, deadline=None)
@given(projections(), st.booleans())
def test_it_equals_the_plain_twin_in_fp32(
    case: tuple[torch.Tensor, list[Projection]], needs_input: bool
) -> None:
    hidden, layers = case
    hidden.requires_grad_(needs_input)
    leaves = [hidden] * needs_input + factors_of(layers)
    fast, plain = lora.project(hidden, layers), reference.project(hidden, layers)
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if not leaves:
        return
    outer = outer_gradients(plain, torch.float32)
    trained = [place for place, output in enumerate(plain) if output.requires_grad]
    expected = torch.autograd.grad([plain[n] for n in trained], leaves, [outer[n] for n in trained])
    found = torch.autograd.grad(
        fast, leaves, [outer[n] if n in trained else torch.zeros_like(outer[n]) for n in range(len(outer))]
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(projections())
def test_in_bf16_gradients_point_where_those_of_fp32_do(case: tuple[torch.Tensor, list[Projection]]) -> None:
    hidden, layers = case
    rounded = [
        replace(one, weight_OI=one.weight_OI.bfloat16(), bias_O=None)
        for one in (replace(layer, bias_O=None) for layer in layers)
    ]
    wide = [replace(one, weight_OI=one.weight_OI.float()) for one in rounded]
    half = hidden.bfloat16().requires_grad_()
    full = half.detach().float().requires_grad_()
    fast, plain = lora.project(half, rounded), reference.project(full, wide)
    assert all(output.dtype == torch.bfloat16 for output in fast)
    found = torch.autograd.grad(fast, [half, *factors_of(layers)], outer_gradients(fast, torch.bfloat16))
    expected = torch.autograd.grad(
        plain, [full, *factors_of(layers)], [one.float() for one in outer_gradients(plain, torch.bfloat16)]
    )
    for ours, theirs in zip((*fast, *found), (*plain, *expected), strict=True):
        if theirs.numel() > 20:
            assert functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), dim=0) > 0.999
    assert all(one.dtype == torch.float32 for one in found[1:]), "gradients of adapters are in fp32"


def test_no_gradient_is_formed_where_none_is_wanted() -> None:
    weight = torch.randn(4, 6)
    down, up = torch.randn(2, 6).requires_grad_(), torch.randn(4, 2).requires_grad_()
    (output,) = lora.project(torch.randn(3, 6), [Projection(weight, None, down, up)])
    output.sum().backward()
    assert down.grad is not None and up.grad is not None and weight.grad is None
    (output,) = lora.project(torch.randn(3, 6), [Projection(weight)])
    assert not output.requires_grad
