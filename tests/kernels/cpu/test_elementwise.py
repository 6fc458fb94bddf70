"""The compiled norm, rotation and gate against their plain twins, through the functions that models call."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from llamafarm.kernels import elementwise, reference
from llamafarm.kernels.compiled import kernels_for
from llamafarm.kernels.cpu import elementwise as compiled

pytestmark = pytest.mark.usefixtures("library")

WIDTHS = st.sampled_from([1, 2, 15, 16, 17, 37, 64, 100])
PLAIN = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda gate: functional.gelu(gate, approximate="tanh"),
}
Function = Callable[..., torch.Tensor]


def assert_alike(tools: SimpleNamespace, fast: Function, plain: Function, *inputs: torch.Tensor) -> None:
    """Compare outputs and gradients in both kinds of numbers with those of the twin in fp32."""
    for dtype in (torch.float32, torch.bfloat16):
        assert kernels_for(inputs[0].to(dtype), "elementwise") is compiled
        leaves = [one.to(dtype, copy=True).requires_grad_() for one in inputs]
        full = [one.detach().float().requires_grad_() for one in leaves]
        expected = plain(*full)
        outer = tools.draw(7, *expected.shape).to(dtype)
        output = fast(*leaves)
        found = [output, *torch.autograd.grad(output, leaves, outer)]
        assert all(one.dtype == dtype for one in found)
        wanted = [expected, *torch.autograd.grad(expected, full, outer.float())]
        assert tools.are_close(found, wanted)


@settings(max_examples=40, deadline=None)
@given(
    num_tokens=st.integers(1, 9),
    num_heads=st.integers(0, 3),
    width=WIDTHS,
    epsilon=st.sampled_from([1e-6, 1e-5]),
    seed=st.integers(0, 99),
)
def test_the_norm(
    tools: SimpleNamespace, num_tokens: int, num_heads: int, width: int, epsilon: float, seed: int
) -> None:
    shape = (num_tokens, num_heads, width) if num_heads else (num_tokens, width)
    weight = 1 + tools.draw(seed + 1, width)
    assert_alike(
        tools,
        lambda hidden: elementwise.normalize(hidden, weight, epsilon),
        lambda hidden: reference.normalize(hidden, weight, epsilon),
        tools.draw(seed, *shape),
    )


@pytest.mark.parametrize("width", [37, 64])
def test_the_norm_of_a_part_of_something_wider(tools: SimpleNamespace, width: int) -> None:
    weight = 1 + tools.draw(1, width)
    parts: list[Function] = [
        lambda wide: wide.chunk(2, dim=-1)[1],
        lambda wide: wide[..., 1 : width + 1],
        lambda wide: wide.view(6, 2, width)[:, 1:],  # a head of each token
        lambda wide: wide.t().reshape(2 * width, 6)[:width].t(),  # elements that do not lie side by side
    ]
    for part in parts:
        assert_alike(
            tools,
            lambda wide, part=part: elementwise.normalize(part(wide), weight, 1e-5),
            lambda wide, part=part: reference.normalize(part(wide), weight, 1e-5),
            tools.draw(2, 6, 2 * width),
        )


@settings(max_examples=40, deadline=None)
@given(
    num_tokens=st.integers(1, 9),
    num_heads=st.integers(1, 4),
    half=st.sampled_from([1, 4, 16, 19, 40]),
    rest=st.sampled_from([0, 1, 6, 64]),
    is_wide=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_rotation_of_whole_heads_and_of_parts_of_them(
    tools: SimpleNamespace, num_tokens: int, num_heads: int, half: int, rest: int, is_wide: bool, seed: int
) -> None:
    angles = tools.draw(seed, num_tokens, half)
    cosine, sine = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    heads = tools.draw(seed + 1, num_tokens, num_heads + 2 * is_wide, 2 * half + rest)

    def rotated(rotate: Function) -> Function:
        return lambda heads: rotate(
            heads[:, is_wide : num_heads + is_wide], cosine.to(heads.dtype), sine.to(heads.dtype)
        )

    assert_alike(tools, rotated(elementwise.rotate), rotated(reference.rotate), heads)


def test_a_rotation_back_gives_what_was_turned(tools: SimpleNamespace) -> None:
    heads, angles = tools.draw(1, 5, 3, 37), tools.draw(2, 5, 13)
    cosine, sine = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    turned = compiled.rotate(heads, cosine, sine, 1)
    assert not torch.allclose(turned[..., :26], heads[..., :26])
    assert torch.equal(turned[..., 26:], heads[..., 26:])
    torch.testing.assert_close(compiled.rotate(turned, cosine, sine, -1), heads)


@pytest.mark.parametrize("name", sorted(elementwise.ACTIVATIONS))
@settings(max_examples=20, deadline=None)
@given(
    num_tokens=st.integers(1, 9),
    width=WIDTHS,
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    seed=st.integers(0, 99),
)
def test_the_gate(
    tools: SimpleNamespace, name: str, num_tokens: int, width: int, spread: float, seed: int
) -> None:
    activation, plain = elementwise.ACTIVATIONS[name], PLAIN[name]
    gate, up = (tools.draw(seed + more, num_tokens, width) for more in (0, 1))
    assert_alike(
        tools,
        lambda gate, up: elementwise.gate(gate, up, activation),
        lambda gate, up: plain(gate) * up,
        spread * gate,
        up,
    )


@pytest.mark.parametrize("name", sorted(elementwise.ACTIVATIONS))
@pytest.mark.parametrize("width", [37, 100])
def test_the_gate_of_the_halves_of_one_product(tools: SimpleNamespace, name: str, width: int) -> None:
    activation, plain = elementwise.ACTIVATIONS[name], PLAIN[name]
    assert_alike(
        tools,
        lambda both: elementwise.gate(*both.chunk(2, dim=-1), activation),
        lambda both: plain(both.chunk(2, dim=-1)[0]) * both.chunk(2, dim=-1)[1],
        tools.draw(3, 7, 2 * width),
    )


@pytest.mark.parametrize("name", sorted(elementwise.ACTIVATIONS))
def test_the_gate_far_from_zero(name: str) -> None:
    """Where an exponential leaves the numbers: there it is 0 or the input itself, and its slope 0 or 1."""
    gate = torch.tensor([[-1e4, -200.0, -90.0, -30.0, 30.0, 90.0, 200.0, 1e4] * 3]).requires_grad_()
    up = torch.full_like(gate, 3.0)
    output = elementwise.gate(gate, up, elementwise.ACTIVATIONS[name])
    expected = PLAIN[name](gate) * up
    (found,), (wanted,) = (torch.autograd.grad(one.sum(), gate) for one in (output, expected))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", [3, 36])
def test_what_is_not_a_number_stays_none(
    tools: SimpleNamespace, wrong: float, dtype: torch.dtype, place: int
) -> None:
    """In a whole vector of 37 elements and in the part of one at the end."""

    def spoilt(seed: int) -> torch.Tensor:
        hidden = tools.draw(seed, 4, 37).to(dtype)
        hidden[2, place] = wrong
        return hidden.requires_grad_()

    def assert_spoilt(*tensors: torch.Tensor) -> None:
        for one in tensors:
            assert not one[2].flatten()[place].isfinite()
            assert one[[0, 1, 3]].isfinite().all()

    hidden = spoilt(1)
    normed = elementwise.normalize(hidden, torch.ones(37), 1e-5)
    assert normed[2, place].isnan() and normed[[0, 1, 3]].isfinite().all()
    (gradient,) = torch.autograd.grad(normed, hidden, torch.ones_like(normed))
    assert gradient[2, place].isnan() and gradient[[0, 1, 3]].isfinite().all()

    angles = torch.full((4, 18), 0.5)
    heads = spoilt(2)
    turned = elementwise.rotate(heads[:, None], angles.cos().to(dtype), angles.sin().to(dtype))
    assert_spoilt(turned)
    (gradient,) = torch.autograd.grad(turned, heads, spoilt(3).detach()[:, None])
    assert_spoilt(gradient)

    up = tools.draw(4, 4, 37).to(dtype).requires_grad_()
    for activation in elementwise.ACTIVATIONS.values():
        gate = spoilt(5)
        gated = elementwise.gate(gate, up, activation)
        assert_spoilt(gated)
        d_gate, d_up = torch.autograd.grad(gated, (gate, up), torch.ones_like(gated))
        assert_spoilt(d_up)
        assert d_gate[2, place].isnan() or wrong == float("inf")


def test_the_same_bits_from_one_thread_and_from_two(tools: SimpleNamespace, threads: None) -> None:
    results = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        both = tools.draw(1, 33, 74).requires_grad_()
        gate, up = both.chunk(2, dim=-1)
        normed = elementwise.normalize(gate, torch.ones(37), 1e-5)
        output = elementwise.gate(normed, up, elementwise.ACTIVATIONS["silu"])
        results.append((output, *torch.autograd.grad(output, both, torch.ones_like(output))))
    assert all(map(torch.equal, *results))


def test_without_a_compiler_plain_torch_does_it(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the library is called")

    monkeypatch.setattr("llamafarm.kernels.cpu.choice.why_not_compiled", lambda: "no compiler")
    monkeypatch.setattr(compiled, "call", fail)
    both = tools.draw(1, 6, 32).requires_grad_()
    assert kernels_for(both, "elementwise") is None
    hidden, up = both.chunk(2, dim=-1)
    normed = elementwise.normalize(hidden, torch.ones(16), 1e-5)
    angles = tools.draw(2, 6, 8)
    turned = elementwise.rotate(normed[:, None], angles.cos(), angles.sin())[:, 0]
    gated = elementwise.gate(turned, up, elementwise.ACTIVATIONS["silu"])
    expected = functional.silu(
        reference.rotate(
            reference.normalize(hidden, torch.ones(16), 1e-5)[:, None], angles.cos(), angles.sin()
        )
    )
    expected = expected[:, 0] * up
    found, wanted = ((one, *torch.autograd.grad(one.sum(), both)) for one in (gated, expected))
    assert tools.are_close(found, wanted)
