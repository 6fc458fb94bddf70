"""Which compiled kernels take a tensor: those of `gpu`, of `cpu`, or none."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal

import torch

from llamafarm.kernels.cpu import choice as of_processor
from llamafarm.kernels.cpu import linear
from llamafarm.kernels.gpu import choice as of_gpu


def room_of(tensor: torch.Tensor) -> str | None:
    """Return the room whose kernels take this tensor; None where plain torch has to."""
    if of_gpu.is_compiled(tensor):
        return "gpu"
    return "cpu" if of_processor.is_compiled(tensor) else None


def kernels_for(tensor: torch.Tensor, kind: Literal["elementwise", "loss"]) -> Any:
    """Return the module with these kernels for a tensor, or None. Both rooms have the same functions."""
    room = room_of(tensor)
    return None if room is None else import_module(f"llamafarm.kernels.{room}.{kind}")


def products_for(terms: Sequence[Any], *, turned: bool = False) -> Any:
    """Return the module that sums these terms of `products`, or None where torch does."""
    return linear if linear.can_multiply(terms, turned=turned) else None


def why_not_compiled(device_kind: str) -> str | None:
    """Return why no kernels are compiled for a kind of device; None where they are."""
    return of_processor.why_not_compiled() if device_kind == "cpu" else of_gpu.why_not_compiled(device_kind)
