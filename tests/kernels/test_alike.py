"""Attention of documents of one length as a batch, against its plain twin."""

from __future__ import annotations

import pytest
import torch

from llamafarm.kernels import alike
from llamafarm.kernels.attention import attend_within_documents
from llamafarm.kernels.reference import Scores, attend_with_dense_mask
from llamafarm.kernels.trial import Heads, is_as_the_twin

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))


def random_heads(num_heads: int, num_key_heads: int, num_tokens: int, size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Token by token in memory, as a projection has them.
    return [
        torch.randn(num_tokens, num, size, generator=generator).transpose(0, 1).requires_grad_()
        for num in (num_heads, num_key_heads, num_key_heads)
    ]


@pytest.mark.parametrize("lengths", [[7], [5, 5, 5], [1, 1]])
@pytest.mark.parametrize(("num_heads", "num_key_heads"), [(4, 4), (6, 2), (3, 1)])
def test_it_equals_the_plain_twin(lengths: list[int], num_heads: int, num_key_heads: int) -> None:
    inputs = random_heads(num_heads, num_key_heads, sum(lengths), 8)
    fast, plain = (attend(*inputs, lengths, Scores(0.3)) for attend in (alike.attend, attend_with_dense_mask))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    outer = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    found, expected = (torch.autograd.grad(output, inputs, outer) for output in (fast, plain))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_its_trial_on_this_device() -> None:
    assert is_as_the_twin(
        alike.attend, Heads(torch.device("cpu"), torch.bfloat16, 4, 2, 16), (8, 8), Scores(0.3)
    )
    assert not is_as_the_twin(
        lambda *inputs, **o: 2 * alike.attend(*inputs, **o),
        Heads(torch.device("cpu"), torch.bfloat16, 4, 2, 16),
        (8, 8),
        Scores(0.3),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("device", [CUDA])
def test_which_documents_it_takes_on_cuda(device: str) -> None:
    query, key, value = (one.detach().to(device, torch.bfloat16) for one in random_heads(8, 2, 1024, 64))

    def takes(lengths: list[int], scores: Scores = Scores(0.125), *, has_prefix: bool = False) -> bool:  # noqa: B008
        return alike.can_attend(query, key, lengths, scores, has_prefix=has_prefix)

    assert takes([512, 512]) and takes([1024]) and takes([256] * 4, Scores(0.125, sliding_window=256))
    assert not takes([512, 256, 256]) and not takes([500, 500, 24]) and not takes([8] * 128)
    assert not takes([512, 512], has_prefix=True)
    assert not takes([512, 512], Scores(0.125, sliding_window=511))
    assert not takes([512, 512], Scores(0.125, softcap=30.0))
    attended = attend_within_documents(query, key, value, [512, 512], Scores(0.125))
    plain = attend_with_dense_mask(query.float(), key.float(), value.float(), [512, 512], Scores(0.125))
    assert (attended.float() - plain).abs().max() < 0.02 * plain.abs().max()


def test_on_a_processor_it_takes_none() -> None:
    query, key, _ = random_heads(4, 2, 512, 8)
    assert not alike.can_attend(query.bfloat16(), key.bfloat16(), [256, 256], Scores(0.3), has_prefix=False)
