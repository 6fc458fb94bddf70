"""Whether torch's attention on a device is right for some heads: tried once, output and gradients.

torch says for which shapes it has a kernel only by failing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from llamafarm.kernels.reference import Scores, attend_with_dense_mask

# Of the largest element; a bf16 has 8 bits.
_TOLERANCE = 0.03


class Heads(NamedTuple):
    """The kind of queries, keys and values: where they are, their numbers, how many heads of which size."""

    device: torch.device
    dtype: torch.dtype
    num_heads: int
    num_key_heads: int
    size: int


# Outside inference mode, since an evaluation may be the first to ask.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
@torch.enable_grad()
def is_as_the_twin(
    attend: Callable[..., torch.Tensor],
    heads: Heads,
    lengths: tuple[int, ...],
    scores: Scores,
    with_prefix: Sequence[bool] = (False,),
) -> bool:
    """Return whether `attend` gives what the plain twin does in fp32 on random documents.

    `attend` has the contract of `attention.attend_within_documents`; `with_prefix` says whether it is tried
    without a shared first document, with one, or both.
    """
    # A generator of its own: a run's dropout must not depend on whether something was tried.
    random = torch.Generator().manual_seed(0)
    drawn = [
        torch.randn(num, sum(lengths), heads.size, generator=random).to(heads.device, heads.dtype)
        for num in (heads.num_heads, heads.num_key_heads, heads.num_key_heads, heads.num_heads)
    ]

    def output_and_gradients(
        attends: Callable[..., torch.Tensor], dtype: torch.dtype, has_prefix: bool
    ) -> list[torch.Tensor]:
        *leaves, gradient = (one.to(dtype, copy=True) for one in drawn)
        output = attends(*(leaf.requires_grad_() for leaf in leaves), lengths, scores, has_prefix=has_prefix)
        return [output, *torch.autograd.grad(output, leaves, gradient)]

    with torch.autocast(heads.device.type, enabled=False):
        for has_prefix in with_prefix:
            try:
                found = output_and_gradients(attend, heads.dtype, has_prefix)
            except (RuntimeError, ValueError, NotImplementedError):
                return False  # no kernel for these shapes or this device
            expected = output_and_gradients(attend_with_dense_mask, torch.float32, has_prefix)
            if not all(_is_close(fast, plain) for fast, plain in zip(found, expected, strict=True)):
                return False
    return True


def _is_close(fast: torch.Tensor, plain: torch.Tensor) -> bool:
    return bool((fast.float() - plain).abs().max() <= _TOLERANCE * plain.abs().max())
