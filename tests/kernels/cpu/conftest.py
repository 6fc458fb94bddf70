"""Tensors for the compiled kernels, and how their results are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def are_close(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Return whether tensors are the same to 1e-5 of their norm, and in 16 bits by the angle between them.

    What is nothing but rounding, as the gradient of a token that sees itself alone, has no angle.
    """
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        if ours.dtype == torch.float32:
            few = 4e-6 * theirs.numel() ** 0.5
            if not (ours - theirs).norm() <= 1e-5 * theirs.norm() + few:
                return False
        else:
            angle = functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), dim=0)
            if not ours.isfinite().all() or (theirs.square().mean() > 1e-4 and not angle > 0.999):
                return False
    return True


@dataclass(frozen=True)
class Layout:
    """How the heads of one product of a layer lie in memory."""

    name: str

    def heads(self, wide: torch.Tensor, numbers: tuple[int, ...], size: int) -> list[torch.Tensor]:
        """Return heads (N, T, D) of which the tokens' elements are those of `wide` (T, all heads * D)."""
        if self.name == "head by head":
            parts = wide.unflatten(1, (-1, size)).split(numbers, dim=1)
            return [part.transpose(0, 1).contiguous() for part in parts]
        num_tokens, width = wide.shape
        if self.name == "odd rows":  # a token is an odd number of elements after the one before it
            wide = functional.pad(wide, (2, 1))[:, 2:-1]
        elif self.name == "odd start":
            # From the second element on: where words of two elements lie askew.
            wide = functional.pad(wide.reshape(-1), (1, 0))[1:].view(num_tokens, width)
        return [part.transpose(0, 1) for part in wide.unflatten(1, (-1, size)).split(numbers, dim=1)]


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """Functions that more than one file of tests needs."""
    layouts = ("token by token", "head by head", "odd rows", "odd start")
    return SimpleNamespace(draw=draw, are_close=are_close, layouts={name: Layout(name) for name in layouts})


@pytest.fixture
def threads() -> Iterator[None]:
    """Give torch the threads back that it had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
