"""The loss of the supervised tokens. Axes: S supervised positions, V vocabulary."""

from __future__ import annotations

import torch
from torch.nn import functional


def sum_cross_entropy(logits_SV: torch.Tensor, targets_S: torch.Tensor) -> torch.Tensor:
    """Return the summed negative log-likelihood of the targets, in nats, computed in fp32.

    A sum, because the mean belongs to the whole optimizer step and is taken there.
    """
    return functional.cross_entropy(logits_SV.float(), targets_S, reduction="sum")
