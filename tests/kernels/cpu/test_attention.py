"""The compiled attention against its plain twin: outputs, gradients, and what it leaves to others."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.kernels import attention as public
from llamafarm.kernels.cpu import attention
from llamafarm.kernels.cpu.library import has
from llamafarm.kernels.reference import Scores, attend_with_dense_mask
from llamafarm.kernels.trial import is_as_the_twin

pytestmark = pytest.mark.usefixtures("library")

LENGTHS = st.lists(st.integers(1, 30) | st.integers(1, 200), min_size=1, max_size=5)
SIZES = st.sampled_from([16, 32, 48, 64, 80, 128])


def numbers_here() -> list[torch.dtype]:
    return [dtype for dtype in (torch.float32, torch.bfloat16) if has("attend", dtype)]


def output_and_gradients(
    attend: Callable[..., torch.Tensor],
    heads: list[torch.Tensor],
    lengths: list[int],
    scores: Scores,
    *,
    has_prefix: bool = False,
    seed: int = 0,
) -> list[torch.Tensor]:
    leaves = [one.detach().requires_grad_() for one in heads]
    output = attend(*leaves, lengths, scores, has_prefix=has_prefix)
    outer = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed + 1))
    return [output, *torch.autograd.grad(output, leaves, outer.to(output.dtype))]


def plain_in_full(heads: list[torch.Tensor], *arguments: Any, **options: Any) -> list[torch.Tensor]:
    return output_and_gradients(attend_with_dense_mask, [one.float() for one in heads], *arguments, **options)


@settings(max_examples=40, deadline=None)
@given(
    lengths=LENGTHS,
    num_key_heads=st.integers(1, 3),
    num_groups=st.sampled_from([1, 2, 3, 4]),
    size=SIZES,
    sliding_window=st.none() | st.integers(1, 20) | st.integers(20, 250),
    softcap=st.none() | st.sampled_from([0.5, 2.0, 50.0]),
    scale=st.sampled_from([0.05, 0.125, 0.35]),
    has_prefix=st.booleans(),
    layout=st.sampled_from(["token by token", "head by head", "odd rows", "odd start"]),
    seed=st.integers(0, 1000),
)
def test_it_equals_the_plain_twin_forward_and_backward(
    tools: SimpleNamespace,
    lengths: list[int],
    num_key_heads: int,
    num_groups: int,
    size: int,
    sliding_window: int | None,
    softcap: float | None,
    scale: float,
    has_prefix: bool,
    layout: str,
    seed: int,
) -> None:
    numbers = (num_key_heads * num_groups, num_key_heads, num_key_heads)
    wide = tools.draw(seed, sum(lengths), sum(numbers) * size)
    scores = Scores(scale, sliding_window, softcap)
    options: dict[str, Any] = {"has_prefix": has_prefix, "seed": seed}
    for dtype in numbers_here():
        heads = tools.layouts[layout].heads(wide.to(dtype), numbers, size)
        before = [one.clone() for one in heads]
        found = output_and_gradients(attention.attend, heads, lengths, scores, **options)
        assert all(one.dtype == dtype for one in found)
        assert tools.are_close(found, plain_in_full(heads, lengths, scores, **options))
        assert all(map(torch.equal, heads, before)), "the inputs stay as they were"


@pytest.mark.parametrize("lengths", [[700], [33, 700, 1, 64], [333, 24, 256, 65]], ids=str)
@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize("options", [{}, {"sliding_window": 100}, {"softcap": 3.0}], ids=str)
def test_documents_of_many_blocks(
    tools: SimpleNamespace, lengths: list[int], has_prefix: bool, options: dict[str, Any]
) -> None:
    wide, scores = tools.draw(3, sum(lengths), 4 * 32), Scores(0.25, **options)
    for dtype in numbers_here():
        heads = tools.layouts["token by token"].heads(wide.to(dtype), (2, 1, 1), 32)
        found = output_and_gradients(attention.attend, heads, lengths, scores, has_prefix=has_prefix)
        assert tools.are_close(found, plain_in_full(heads, lengths, scores, has_prefix=has_prefix))


def test_a_gradient_that_is_one_number_for_all(tools: SimpleNamespace) -> None:
    for dtype in numbers_here():
        heads = [tools.draw(place, 2, 40, 16).to(dtype) for place in range(3)]
        found, expected = (
            torch.autograd.grad(attend(*leaves, [31, 9], Scores(0.3)).sum(), leaves)
            for attend, leaves in (
                (attention.attend, [one.requires_grad_() for one in heads]),
                (attend_with_dense_mask, [one.detach().float().requires_grad_() for one in heads]),
            )
        )
        assert tools.are_close(found[2:], expected[2:])
        # The values' gradient alone is more than rounding where all outputs count alike in every direction.
        assert tools.are_close(found, expected)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("place", [0, 17, 89])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0}, {"sliding_window": 40}], ids=str)
def test_what_is_not_a_number_is_not_hidden(
    tools: SimpleNamespace, wrong: float, which: int, place: int, options: dict[str, Any]
) -> None:
    lengths, scores = [20, 90, 10], Scores(0.25, **options)
    for dtype in numbers_here():
        # Positive, so that an infinite key has an infinite score for every query.
        heads = [tools.draw(seed, 2, 120, 16).abs().to(dtype) for seed in range(3)]
        heads[which][1, 20 + place, 5] = wrong
        if which == 0 or options.get("softcap"):
            # An infinite score that is bounded, or that all keys have alike, is a number or is none as
            # for the twin; here it is to be none.
            heads[which][1, 20 + place, 6] = -wrong
        output, *gradients = output_and_gradients(attention.attend, heads, lengths, scores)
        seen_by = min(place + options.get("sliding_window", 90), 90)
        rows = slice(20 + place, 21 + place) if which == 0 else slice(20 + place, 20 + seen_by)
        is_finite_T = output[1].isfinite().all(1)
        assert not is_finite_T[rows].any()
        assert is_finite_T[:20].all() and is_finite_T[110:].all() and output[0].isfinite().all()
        # The values' own gradient follows from the weights alone.
        spoilt = gradients[: 2 if which == 2 else 3]
        assert not any(one[1, 20:110].isfinite().all() for one in spoilt)
        for one in gradients:
            assert one[:, :20].isfinite().all() and one[:, 110:].isfinite().all()


def test_a_gradient_that_is_not_a_number_is_not_hidden(tools: SimpleNamespace) -> None:
    for dtype in numbers_here():
        leaves = [tools.draw(seed, 1, 30, 16).to(dtype).requires_grad_() for seed in range(3)]
        output = attention.attend(*leaves, [30], Scores(0.25))
        outer = torch.ones_like(output)
        outer[0, 29, 3] = float("nan")
        for gradient in torch.autograd.grad(output, leaves, outer):
            assert gradient.isnan().any()


@pytest.mark.parametrize("has_prefix", [False, True])
def test_two_calls_and_any_number_of_threads_give_the_same_bits(
    tools: SimpleNamespace, threads: None, has_prefix: bool
) -> None:
    lengths = [100, 7, 250, 31]
    for dtype in numbers_here():
        heads = tools.layouts["token by token"].heads(tools.draw(1, 388, 8 * 32).to(dtype), (4, 2, 2), 32)
        results = []
        for num_threads in (2, 2, 1):
            torch.set_num_threads(num_threads)
            results.append(
                output_and_gradients(
                    attention.attend, heads, lengths, Scores(0.2, 90, 20.0), has_prefix=has_prefix
                )
            )
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))


def test_heads_that_were_long_and_wide_leave_nothing_to_the_next_ones(tools: SimpleNamespace) -> None:
    """Threads keep their memory from call to call."""
    small = [tools.draw(seed, 2, 21, 16) for seed in range(3)]
    first = output_and_gradients(attention.attend, small, [5, 16], Scores(0.25))
    large = [torch.full((2, 400, 64), 1e30) for _ in range(3)]
    output_and_gradients(attention.attend, large, [400], Scores(1.0))
    again = output_and_gradients(attention.attend, small, [5, 16], Scores(0.25))
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("lengths", [[2, 3], [6, 1], []], ids=str)
def test_lengths_that_are_not_those_of_the_pack_are_an_error(
    tools: SimpleNamespace, lengths: list[int]
) -> None:
    heads = [tools.draw(seed, 1, 6, 16) for seed in range(3)]
    with pytest.raises(ValueError, match=f"6 tokens of documents that have {sum(lengths)}"):
        attention.attend(*heads, lengths, Scores(1.0))


def can_attend(dtype: torch.dtype, size: int, lengths: list[int], *, has_prefix: bool = False) -> bool:
    query, key = (torch.zeros(number, sum(lengths), size, dtype=dtype) for number in (4, 2))
    return attention.can_attend(query, key, lengths, Scores(0.3), has_prefix=has_prefix)


def test_it_takes_heads_of_whole_vectors_in_numbers_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert can_attend(torch.float32, 16, [5, 6]) and can_attend(torch.float32, 80, [5, 6])
    assert can_attend(torch.bfloat16, 64, [5, 6]) == has("attend", torch.bfloat16)
    assert not any(can_attend(torch.float32, size, [5, 6]) for size in (4, 8, 24, 65))
    assert not can_attend(torch.float16, 16, [5, 6])
    assert not can_attend(torch.float64, 16, [5, 6])


def test_it_takes_no_few_tasks_for_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two key heads of one document are two tasks."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert can_attend(torch.float32, 16, [50])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert not can_attend(torch.float32, 16, [50])
    assert can_attend(torch.float32, 16, [50, 50])
    assert not can_attend(torch.float32, 16, [50, 2, 1]), "the long one is waited for"
    # After a prefix as long as itself, the second has three times the work of the first: 4/3 of the longest.
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10)
    assert can_attend(torch.float32, 16, [50, 50])
    assert not can_attend(torch.float32, 16, [50, 50], has_prefix=True)


def test_a_kernel_that_is_wrong_on_a_trial_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    right = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args, **options: 1.1 * right(*args, **options))
    assert not can_attend(torch.float32, 16, [5, 6])


def test_an_evaluation_may_be_the_first_to_ask(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    heads = [tools.draw(seed, 2, 12, 16) for seed in range(3)]
    is_as_the_twin.cache_clear()
    with torch.inference_mode():
        assert can_attend(torch.float32, 16, [5, 7])
        output = public.attend_within_documents(*heads, [5, 7], Scores(0.3))
    assert tools.are_close([output], [attend_with_dense_mask(*heads, [5, 7], Scores(0.3))])


@pytest.mark.parametrize("has_compiler", [True, False])
def test_attention_on_a_processor_is_this_one_or_else_that_in_blocks(
    tools: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, has_compiler: bool
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    used = []
    for owner, name in ((attention, "attend"), (public, "attend_in_blocks")):
        original = getattr(owner, name)

        def spy(*args: Any, _name: str = name, _original: Any = original, **options: Any) -> torch.Tensor:
            used.append(_name)
            return _original(*args, **options)

        monkeypatch.setattr(owner, name, spy)
    if not has_compiler:
        monkeypatch.setattr("llamafarm.kernels.cpu.choice.why_not_compiled", lambda: "no compiler")
    heads, scores = [tools.draw(seed, 2, 12, 16) for seed in range(3)], Scores(0.3)
    found = output_and_gradients(public.attend_within_documents, heads, [5, 7], scores)
    assert used and set(used) == {"attend" if has_compiler else "attend_in_blocks"}
    assert tools.are_close(found, plain_in_full(heads, [5, 7], scores))
