"""Attention of all documents at once against its plain twin.

torch's kernel runs on CUDA alone. Elsewhere a stand-in that does what its documentation says takes its place,
so that what is handed to it (bounds, windows, keys behind a prefix) is tested everywhere.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.kernels import varlen
from llamafarm.kernels.attention import attend_within_documents
from llamafarm.kernels.reference import Scores, attend_with_dense_mask
from llamafarm.kernels.trial import Heads, is_as_the_twin

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))


def as_documented(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attend as torch.nn.attention.varlen documents it; tokens first, the last query has the last key."""
    left, right = window_size
    assert right == 0 and cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert query.shape[1] == key.shape[1] or enable_gqa
    outputs = []
    begins = zip(
        cu_seq_q.tolist(), cu_seq_q.tolist()[1:], cu_seq_k.tolist(), cu_seq_k.tolist()[1:], strict=False
    )
    for first_query, end_query, first_key, end_key in begins:
        num_queries, num_keys = end_query - first_query, end_key - first_key
        assert num_queries <= max_q and num_keys <= max_k
        groups = query.shape[1] // key.shape[1]
        keys = key[first_key:end_key].repeat_interleave(groups, dim=1)
        values = value[first_key:end_key].repeat_interleave(groups, dim=1)
        scores = torch.einsum("qhe,khe->hqk", query[first_query:end_query], keys) * scale
        distance = torch.arange(num_queries)[:, None] + num_keys - num_queries - torch.arange(num_keys)
        is_seen = (distance >= 0) & ((left < 0) | (distance <= left))
        weights = torch.softmax(scores.float().masked_fill(~is_seen, float("-inf")), dim=-1)
        outputs.append(torch.einsum("hqk,khe->qhe", weights.to(values.dtype), values))
    return torch.cat(outputs)


def random_heads(num_heads: int, num_key_heads: int, lengths: list[int], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(num, sum(lengths), 8, generator=generator).requires_grad_()
        for num in (num_heads, num_key_heads, num_key_heads)
    ]


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return torch.autograd.grad(output, inputs, torch.randn(output.shape, generator=generator).to(output))


@pytest.fixture(autouse=True)
def forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tried with a stand-in is not remembered."""
    is_as_the_twin.cache_clear()
    monkeypatch.setattr(varlen, "varlen_attn", as_documented)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    num_key_heads=st.sampled_from([1, 2, 3]),
    num_groups=st.sampled_from([1, 2, 4]),
    sliding_window=st.none() | st.integers(1, 15),
    has_prefix=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_it_equals_the_plain_twin_forward_and_backward(
    lengths: list[int],
    num_key_heads: int,
    num_groups: int,
    sliding_window: int | None,
    has_prefix: bool,
    seed: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen, "varlen_attn", as_documented)
        inputs = random_heads(num_key_heads * num_groups, num_key_heads, lengths, seed)
        scores = Scores(0.3, sliding_window)
        fast = varlen.attend(*inputs, lengths, scores, has_prefix=has_prefix)
        plain = attend_with_dense_mask(*inputs, lengths, scores, has_prefix=has_prefix)
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(gradients(fast, inputs), gradients(plain, inputs), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_keys_are_repeated_where_torch_does_not_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 has windows, but no `enable_gqa`."""

    def of_old(*tensors: Any, scale: float, window_size: tuple[int, int]) -> torch.Tensor:
        return as_documented(*tensors, scale=scale, window_size=window_size)

    monkeypatch.setattr(varlen, "varlen_attn", of_old)
    inputs = random_heads(6, 2, [5, 4], seed=2)
    plain = attend_with_dense_mask(*inputs, [5, 4], Scores(0.3))
    torch.testing.assert_close(varlen.attend(*inputs, [5, 4], Scores(0.3)), plain, rtol=1e-5, atol=1e-5)


def probe(scores: Scores = Scores(0.3)) -> bool:  # noqa: B008
    return varlen._is_right_for(Heads(torch.device("cpu"), torch.bfloat16, 4, 2, 16), scores)


def test_a_kernel_is_taken_if_it_does_what_the_twin_does() -> None:
    with torch.inference_mode():
        assert probe() and probe(Scores(0.3, sliding_window=7))


@pytest.mark.parametrize("fault", ["fails", "is_blind", "sees_too_much", "is_aligned_left", "is_of_old"])
def test_a_kernel_that_fails_or_computes_something_else_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def fails(*_: Any, window_size: tuple[int, int], **__: Any) -> torch.Tensor:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    def is_blind(*tensors: Any, window_size: tuple[int, int], **options: Any) -> torch.Tensor:
        return as_documented(*tensors, window_size=(0, 0), **options)

    def sees_too_much(*tensors: Any, window_size: tuple[int, int], **options: Any) -> torch.Tensor:
        query, key, value, _, _, *_ = tensors
        whole = torch.tensor([0, len(query)], dtype=torch.int32)
        return as_documented(
            query, key, value, whole, whole, len(query), len(query), window_size=window_size, **options
        )

    def is_aligned_left(*tensors: Any, **options: Any) -> torch.Tensor:
        query, key, value, queries, keys, *longest = tensors
        cut = [
            key[first : first + n] for first, n in zip(keys.tolist(), queries.diff().tolist(), strict=False)
        ]
        cut_values = [
            value[first : first + n] for first, n in zip(keys.tolist(), queries.diff().tolist(), strict=False)
        ]
        return as_documented(
            query, torch.cat(cut), torch.cat(cut_values), queries, queries, *longest, **options
        )

    def is_of_old(*tensors: Any, is_causal: bool = False, scale: float = 1.0) -> torch.Tensor:
        raise AssertionError("its windows cannot be asked for")

    monkeypatch.setattr(varlen, "varlen_attn", locals()[fault])
    assert not probe()


def test_other_devices_numbers_and_scores_are_not_its_own() -> None:
    query, key, _ = random_heads(4, 2, [5], seed=3)
    assert not varlen.can_attend(query, key, Scores(0.3))
    on_a_gpu = torch.empty(4, 5, 8, device="meta", dtype=torch.bfloat16)
    assert not varlen.can_attend(on_a_gpu, on_a_gpu, Scores(0.3))


def test_documents_are_attended_to_at_once_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("llamafarm.kernels.attention._is_processor", lambda _: False)
    monkeypatch.setattr(varlen, "can_attend", lambda *_: True)
    monkeypatch.setattr(
        varlen, "varlen_attn", lambda *tensors, **o: (calls.append(1), as_documented(*tensors, **o))[1]
    )
    inputs = random_heads(4, 2, [5, 3, 6], seed=4)
    attended = attend_within_documents(*inputs, [5, 3, 6], Scores(0.3), has_prefix=True)
    plain = attend_with_dense_mask(*inputs, [5, 3, 6], Scores(0.3), has_prefix=True)
    torch.testing.assert_close(attended, plain, rtol=1e-5, atol=1e-5)
    assert calls == [1]


@pytest.mark.gpu
@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("scores", [Scores(0.125), Scores(0.125, sliding_window=70)], ids=str)
@pytest.mark.parametrize("has_prefix", [False, True])
def test_on_cuda_torch_s_own_kernel_is_taken(
    monkeypatch: pytest.MonkeyPatch, device: str, scores: Scores, has_prefix: bool
) -> None:
    monkeypatch.undo()
    lengths = [100, 260, 40]
    generator = torch.Generator().manual_seed(5)
    inputs = [
        torch.randn(num, 400, 64, generator=generator).to(device, torch.bfloat16).requires_grad_()
        for num in (8, 2, 2)
    ]
    assert varlen.can_attend(inputs[0], inputs[1], scores)
    fast = varlen.attend(*inputs, lengths, scores, has_prefix=has_prefix)
    wide = [one.detach().float().requires_grad_() for one in inputs]
    plain = attend_with_dense_mask(*wide, lengths, scores, has_prefix=has_prefix)
    found, expected = (fast, *gradients(fast, inputs)), (plain, *gradients(plain, wide))
    for ours, theirs in zip(found, expected, strict=True):
        similarity = torch.nn.functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), dim=0)
        assert similarity > 0.999
