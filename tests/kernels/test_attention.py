"""Attention within documents against its plain twin, and the twin against attention written by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from llamafarm.kernels import attention
from llamafarm.kernels.attention import attend_within_documents
from llamafarm.kernels.reference import Scores, attend_with_dense_mask, visible_pairs

# The compiled kernel for heads that it takes, that in blocks for the others and once more for all.
pytestmark = pytest.mark.usefixtures("each_way")


def random_heads(
    num_query_heads: int, num_key_heads: int, num_tokens: int, head_size: int, seed: int
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num_heads, num_tokens, head_size, generator=generator).requires_grad_()
        for num_heads in (num_query_heads, num_key_heads, num_key_heads)
    ]


def gradients(output: torch.Tensor, inputs: list[torch.Tensor], seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.autograd.grad(output, inputs, torch.randn(output.shape, generator=generator))


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    num_key_heads=st.sampled_from([1, 2, 3]),
    num_groups=st.sampled_from([1, 2, 4]),
    head_size=st.sampled_from([4, 8, 16]),
    sliding_window=st.none() | st.integers(1, 15),
    softcap=st.none() | st.sampled_from([0.5, 2.0, 50.0]),
    scale=st.sampled_from([0.1, 0.35, 1.0]),
    has_prefix=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_fast_kernel_equals_the_plain_one_forward_and_backward(
    lengths: list[int],
    num_key_heads: int,
    num_groups: int,
    head_size: int,
    sliding_window: int | None,
    softcap: float | None,
    scale: float,
    has_prefix: bool,
    seed: int,
) -> None:
    inputs = random_heads(num_key_heads * num_groups, num_key_heads, sum(lengths), head_size, seed)
    scores = Scores(scale, sliding_window, softcap)
    fast = attend_within_documents(*inputs, lengths, scores, has_prefix=has_prefix)
    plain = attend_with_dense_mask(*inputs, lengths, scores, has_prefix=has_prefix)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(fast, inputs, seed), gradients(plain, inputs, seed), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [[300, 33, 1], [100, 260, 40], [32, 640]])
@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize("options", [{}, {"sliding_window": 70}, {"softcap": 3.0}], ids=str)
def test_long_documents_in_blocks_and_in_16_bits(
    lengths: list[int], has_prefix: bool, options: dict[str, Any]
) -> None:
    inputs = random_heads(6, 2, sum(lengths), 16, seed=9)
    scores = Scores(0.4, **options)
    plain = attend_with_dense_mask(*inputs, lengths, scores, has_prefix=has_prefix)
    fast = attend_within_documents(*inputs, lengths, scores, has_prefix=has_prefix)
    halves = [one.detach().bfloat16().requires_grad_() for one in inputs]
    half = attend_within_documents(*halves, lengths, scores, has_prefix=has_prefix)
    expected = (plain, *gradients(plain, inputs, 2))
    found = (fast, *gradients(fast, inputs, 2))
    outer = torch.randn(half.shape, generator=torch.Generator().manual_seed(3)).bfloat16()
    found_in_half = (half, *torch.autograd.grad(half, halves, outer))
    for ours, rounded, theirs in zip(found, found_in_half, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
        assert rounded.dtype == torch.bfloat16
        assert functional.cosine_similarity(rounded.float().flatten(), theirs.flatten(), dim=0) > 0.999


def test_elsewhere_documents_are_attended_to_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of GPUs, on the processor: torch's own attention, and pairs where it lacks something."""
    monkeypatch.setattr(attention, "_is_processor", lambda _: False)
    lengths = [5, 7, 3]
    for has_prefix in (False, True):
        for options in ({}, {"sliding_window": 4}, {"softcap": 2.0}):
            inputs = random_heads(4, 2, 15, 8, seed=4)
            scores = Scores(0.5, **options)  # type: ignore[arg-type]
            fast = attend_within_documents(*inputs, lengths, scores, has_prefix=has_prefix)
            plain = attend_with_dense_mask(*inputs, lengths, scores, has_prefix=has_prefix)
            torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
            for ours, theirs in zip(gradients(fast, inputs, 1), gradients(plain, inputs, 1), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_prefix_is_seen_by_all_documents_and_no_document_by_another() -> None:
    visible = visible_pairs([2, 2, 1], 3, torch.device("cpu"), has_prefix=True)
    assert visible.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


@pytest.mark.parametrize("sliding_window", [None, 1, 3])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_the_plain_kernel_is_attention_as_it_is_written_down(
    sliding_window: int | None, softcap: float | None
) -> None:
    lengths, scale = [4, 1, 6], 0.6
    query, key, value = (tensor.detach() for tensor in random_heads(4, 2, sum(lengths), 5, seed=3))
    output = attend_with_dense_mask(query, key, value, lengths, Scores(scale, sliding_window, softcap))
    start = 0
    for length in lengths:
        for token in range(start, start + length):
            first = start if sliding_window is None else max(start, token - sliding_window + 1)
            for head in range(4):
                scores = [
                    float(query[head, token] @ key[head // 2, seen]) * scale
                    for seen in range(first, token + 1)
                ]
                if softcap is not None:
                    scores = [softcap * math.tanh(score / softcap) for score in scores]
                weights = [math.exp(score) for score in scores]
                seen_values = value[head // 2, first : token + 1]
                expected = sum(w * v for w, v in zip(weights, seen_values, strict=True)) / sum(weights)
                torch.testing.assert_close(output[head, token], expected, rtol=1e-5, atol=1e-5)
        start += length


@pytest.mark.parametrize("sliding_window", [None, 4])
def test_nothing_crosses_from_one_document_into_another(sliding_window: int | None) -> None:
    lengths = [5, 7, 3]
    inputs = random_heads(2, 1, 15, 4, seed=5)
    output = attend_within_documents(*inputs, lengths, Scores(0.5, sliding_window))
    for gradient in torch.autograd.grad(output[:, 5:12].square().sum(), inputs):
        assert gradient[:, :5].abs().max() == 0
        assert gradient[:, 12:].abs().max() == 0
        assert gradient[:, 5:12].abs().max() > 0


def test_no_token_sees_a_later_one_or_one_outside_its_window() -> None:
    visible = visible_pairs([2, 4], 2, torch.device("cpu"))
    assert visible.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def test_half_precision_keeps_its_type() -> None:
    inputs = [tensor.detach().bfloat16() for tensor in random_heads(2, 1, 9, 8, seed=2)]
    for sliding_window in (None, 3):
        scores = Scores(0.3, sliding_window)
        fast = attend_within_documents(*inputs, [4, 5], scores)
        plain = attend_with_dense_mask(*inputs, [4, 5], scores)
        assert fast.dtype == plain.dtype == torch.bfloat16
        torch.testing.assert_close(fast, plain, rtol=0.02, atol=0.02)


def test_lengths_that_are_not_those_of_the_pack_are_an_error() -> None:
    inputs = random_heads(2, 1, 6, 4, seed=1)
    with pytest.raises(ValueError, match="6 tokens"):
        attend_within_documents(*inputs, [2, 3], Scores(1.0))


def test_under_autocast_all_heads_are_in_its_numbers() -> None:
    """Rotated queries and keys come in fp32 there, values in 16 bits."""
    query, key, value = random_heads(4, 2, 9, 16, seed=3)
    with torch.autocast("cpu", torch.bfloat16):
        output = attend_within_documents(query, key, value.bfloat16(), [4, 5], Scores(0.3))
    assert output.dtype == torch.bfloat16
    expected = attend_with_dense_mask(query, key, value, [4, 5], Scores(0.3))
    found = gradients(output, [query, key, value], 1)
    assert all(one.dtype == torch.float32 for one in found)
    wanted = gradients(expected, [query, key, value], 1)
    for ours, theirs in zip((output, *found), (expected, *wanted), strict=True):
        assert functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), dim=0) > 0.999
