"""Loss and perplexity over the supervised tokens of packs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from llamafarm.data.encoding.pack import Pack
from llamafarm.model.forward import PackedForward


@dataclass(frozen=True, slots=True)
class LossResult:
    """The mean loss in nats per supervised token, and how many there were."""

    loss: float
    num_supervised_tokens: int

    @property
    def perplexity(self) -> float:
        """Return exp(loss): how many tokens the model hesitates between; infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def measure_loss(
    packed: PackedForward,
    packs: Sequence[Pack],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
) -> LossResult:
    """Return a model's loss over `packs`; the model is in training mode afterwards if it was before."""
    model = packed.model
    was_training = model.training
    model.eval()
    loss_sum, num_supervised_tokens = 0.0, 0
    with torch.inference_mode(), autocast():
        for pack in packs:
            if pack.num_supervised_tokens:
                there = pack.to(device)
                loss_sum += float(packed.sum_loss(there))
                num_supervised_tokens += pack.num_supervised_tokens
    model.train(was_training)
    return LossResult(loss_sum / max(num_supervised_tokens, 1), num_supervised_tokens)
