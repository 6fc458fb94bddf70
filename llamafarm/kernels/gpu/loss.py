"""The loss of logits and its gradient, in one kernel on a GPU. Axes: C positions, V vocabulary."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from llamafarm.kernels.gpu.math import tanh

_BLOCK = 4096


def loss_and_gradient(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, scale: float, softcap: float | None, factor: float
) -> torch.Tensor:
    """Return the loss of each target in nats, in fp32; `logits_CV` becomes the gradient of their sum.

    The logits come as the head's product has them; they are multiplied with `scale` and bounded by a tanh at
    `softcap` here. The gradient is that of the product, `factor` times itself.
    """
    losses_C = torch.empty(len(targets_C), dtype=torch.float32, device=logits_CV.device)
    _loss_and_gradient[(len(targets_C),)](
        logits_CV,
        targets_C,
        losses_C,
        logits_CV.stride(0),
        scale,
        softcap or 1.0,
        factor,
        WIDTH=logits_CV.shape[1],
        HAS_CAP=softcap is not None,
        BLOCK=_BLOCK,
        num_warps=8,
    )
    return losses_C


@triton.jit
def _bounded(raw, scale, softcap, HAS_CAP: tl.constexpr):
    """Return logits scaled and bounded, and the slope of both."""
    logits = raw * scale
    slope = scale + 0 * raw
    if HAS_CAP:
        bent = tanh(logits / softcap)
        logits = bent * softcap
        slope = (1 - bent * bent) * scale
    return logits, slope


@triton.jit
def _loss_and_gradient(
    logits,
    targets,
    losses,
    stride,
    scale,
    softcap,
    factor,
    WIDTH: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    mine = logits + row * stride
    target = tl.load(targets + row)
    # Each lane keeps its own largest and its own sum: one meeting of lanes for the row, not one a block.
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        raw = tl.load(mine + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        found, _ = _bounded(raw, scale, softcap, HAS_CAP)
        found = tl.where(column < WIDTH, found, -float("inf"))
        larger = tl.maximum(largest, found)
        # A lane that has met nothing yet is at minus infinity, whose difference to itself is no number.
        safe = tl.where(larger == -float("inf"), 0.0, larger)
        total = total * tl.exp(largest - safe) + tl.exp(found - safe)
        largest = larger
    peak = tl.max(largest, axis=0)
    log_total = peak + tl.log(tl.sum(total * tl.exp(largest - peak), axis=0))
    chosen, _ = _bounded(tl.load(mine + target).to(tl.float32), scale, softcap, HAS_CAP)
    tl.store(losses + row, log_total - chosen)
    for start in range(0, WIDTH, BLOCK):
        column = start + tl.arange(0, BLOCK)
        raw = tl.load(mine + column, mask=column < WIDTH, other=0.0).to(tl.float32)
        found, slope = _bounded(raw, scale, softcap, HAS_CAP)
        chance = tl.exp(found - log_total)
        gradient = (chance - tl.where(column == target, 1.0, 0.0)) * slope * factor
        tl.store(mine + column, gradient, mask=column < WIDTH)
