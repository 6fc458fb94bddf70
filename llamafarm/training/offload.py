"""Keeps what a backward pass will need in main memory meanwhile, where the device's does not suffice.

What autograd saves comes back with the values and strides that it had, so that no result changes by a bit.
With gradient checkpointing that is little more than the input of each layer: little is copied, much is freed.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain

import torch
from torch.autograd.graph import saved_tensors_hooks

from llamafarm.hardware.memory import read_main_memory

# Others have main memory as theirs.
_KINDS_WITH_OWN_MEMORY = ("cuda",)
# A smaller tensor frees less than its copies cost.
_LEAST_BYTES = 2**20
# torch takes locked memory in powers of two and keeps it, that of each size for itself: with packs of all
# sizes up to four times what one pass copies.
_PART_OF_MAIN_MEMORY = 0.25


class Offload:
    """The remedy: off until it is started, then at work in each forward pass of `model`."""

    def __init__(self, model: torch.nn.Module, device_kind: str) -> None:
        self._model = model
        self._device_kind = device_kind
        self._room_bytes = 0

    def start(self) -> bool:
        """Copy from now on; return whether that is new, and there is something to be had by it here."""
        if self._room_bytes or self._device_kind not in _KINDS_WITH_OWN_MEMORY:
            return False
        room_bytes = int(_PART_OF_MAIN_MEMORY * read_main_memory()[1])
        if room_bytes < _LEAST_BYTES:
            return False
        self._room_bytes = room_bytes
        return True

    def around_forward(self) -> AbstractContextManager[object]:
        """Return what a forward pass runs in; its backward pass comes after, outside."""
        if not self._room_bytes:
            return nullcontext()
        copies = HostCopies(self._device_kind, storages_of(self._model), self._room_bytes)
        return saved_tensors_hooks(copies.pack, copies.unpack)


def storages_of(model: torch.nn.Module) -> frozenset[int]:
    """Return where the weights and buffers of `model` are in memory; views of one are in the same place."""
    held = chain(model.parameters(), model.buffers())
    return frozenset(tensor.untyped_storage().data_ptr() for tensor in held)


@dataclass(frozen=True, slots=True)
class _HostCopy:
    """The stretch of memory that a tensor is spread over, and how it lies there."""

    stretch: torch.Tensor
    size: torch.Size
    stride: tuple[int, ...]
    device: torch.device


class HostCopies:
    """What autograd saves of one forward pass on a device, as far as `room_bytes` reach.

    `kept_storages` are not copied, such as weights: they stay on the device anyway. `num_bytes` is what was
    copied so far.
    """

    def __init__(self, device_kind: str, kept_storages: Collection[int], room_bytes: int) -> None:
        self.num_bytes = 0
        self._device_kind = device_kind
        self._kept_storages = kept_storages
        self._room_bytes = room_bytes
        self._locks_memory = True

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | _HostCopy:
        """Return what autograd keeps instead of `tensor`; the tensor itself where a copy gains nothing."""
        if not self._is_worth_it(tensor):
            return tensor
        # The whole stretch in one piece: other strides could mean another product, and other rounding.
        stretch = tensor.as_strided((_num_spread(tensor),), (1,))
        if self.num_bytes + stretch.nbytes > self._room_bytes:
            return tensor
        self.num_bytes += stretch.nbytes
        host = self._allocate(stretch)
        # The next use of the memory on the device queues behind this, and so does its way back.
        host.copy_(stretch, non_blocking=host.is_pinned())
        return _HostCopy(host, tensor.shape, tensor.stride(), tensor.device)

    def unpack(self, kept: torch.Tensor | _HostCopy) -> torch.Tensor:
        """Return the tensor that `pack` was given, on its device and as it lay there."""
        if isinstance(kept, torch.Tensor):
            return kept
        stretch = kept.stretch.to(kept.device, non_blocking=kept.stretch.is_pinned())
        return stretch.as_strided(kept.size, kept.stride)

    def _is_worth_it(self, tensor: torch.Tensor) -> bool:
        return (
            tensor.device.type == self._device_kind
            and tensor.layout == torch.strided
            and tensor.nbytes >= _LEAST_BYTES
            and tensor.untyped_storage().data_ptr() not in self._kept_storages
        )

    def _allocate(self, stretch: torch.Tensor) -> torch.Tensor:
        """Return main memory for a copy: locked, which a device reads faster, while there is some to lock."""
        if self._locks_memory:
            try:
                return torch.empty(stretch.shape, dtype=stretch.dtype, pin_memory=True)
            except RuntimeError:  # systems and containers limit it
                self._locks_memory = False
        return torch.empty(stretch.shape, dtype=stretch.dtype)


def _num_spread(tensor: torch.Tensor) -> int:
    """Return how many elements lie from a tensor's first to its last, those of others between them too."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
