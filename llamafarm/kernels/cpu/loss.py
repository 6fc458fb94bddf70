"""The loss of logits and its gradient, in one kernel on a processor. Axes: C positions, V vocabulary."""

from __future__ import annotations

import torch

from llamafarm.kernels.cpu.library import call


def loss_and_gradient(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, scale: float, softcap: float | None, factor: float
) -> torch.Tensor:
    """Return the loss of each target in nats, in fp32; `logits_CV` becomes the gradient of their sum.

    The logits come as the head's product has them; they are multiplied with `scale` and bounded by a tanh at
    `softcap` here. `factor` is 1: 16-bit floats that need another are not compiled for. Raises `IndexError`
    for a target that no logit is of.
    """
    assert factor == 1.0 and logits_CV.stride(1) == 1
    targets_C = targets_C.contiguous()
    if len(targets_C) and not 0 <= int(targets_C.min()) <= int(targets_C.max()) < logits_CV.shape[1]:
        raise IndexError(f"a target is outside of the {logits_CV.shape[1]} tokens of the vocabulary")
    losses_C = torch.empty(len(targets_C), dtype=torch.float32)
    call(
        "loss_and_gradient",
        logits_CV.dtype,
        logits_CV.data_ptr(),
        targets_C.data_ptr(),
        losses_C.data_ptr(),
        *logits_CV.shape,
        logits_CV.stride(0),
        scale,
        softcap or 0.0,
        torch.get_num_threads(),
    )
    return losses_C
