"""One optimizer step: a set of rows, cut into packs, and one update.

The loss is the mean over all supervised tokens of the step, so that how its rows are grouped into packs
changes nothing but rounding.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from llamafarm.data.encoding.pack import Pack
from llamafarm.errors import NonFiniteError

# From a pack to the summed loss of its supervised tokens, in nats.
SumLoss = Callable[[Pack], torch.Tensor]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did. `train_loss` is in nats per supervised token; `grad_norm` is before clipping."""

    train_loss: float
    grad_norm: float
    num_tokens: int
    num_supervised_tokens: int


@dataclass(frozen=True, slots=True)
class Precision:
    """How a step computes: under which autocast, and with which loss scaler (fp16 needs one)."""

    autocast: Callable[[], AbstractContextManager[object]]
    scaler: torch.amp.GradScaler | None = None

    @property
    def is_native(self) -> bool:
        """Return whether everything is computed in the numbers that it is in, without autocast."""
        return self.autocast is nullcontext


def run_step(
    sum_loss: SumLoss,
    packs: Sequence[Pack],
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    *,
    max_grad_norm: float,
    where: str,
) -> StepResult:
    """Take one optimizer step over the rows in `packs`; gradients are empty before and after.

    Raises `NonFiniteError`, with the weights untouched, if the loss or the gradient is not finite; `where`
    names the step in that error. With a loss scaler an infinite gradient is no error: the scaler skips the
    update and lowers its scale.
    """
    try:
        return _run_step(sum_loss, packs, optimizer, precision, max_grad_norm, where)
    finally:
        # Also where it breaks off: what is done again must not find half a gradient.
        optimizer.zero_grad(set_to_none=True)
        if precision.scaler is not None and sys.exc_info()[0] is not None:
            precision.scaler.update(new_scale=precision.scaler.get_scale())


def _run_step(
    sum_loss: SumLoss,
    packs: Sequence[Pack],
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    max_grad_norm: float,
    where: str,
) -> StepResult:
    num_supervised_tokens = sum(pack.num_supervised_tokens for pack in packs)
    train_loss = _accumulate_gradients(sum_loss, packs, num_supervised_tokens, precision)
    scaler = precision.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or math.inf))
    if not math.isfinite(train_loss) or (scaler is None and not math.isfinite(grad_norm)):
        raise NonFiniteError(
            f"the loss is {train_loss:g} and the gradient's norm {grad_norm:g}: this step was not taken",
            where=where,
            remedy="Lower training_args.learning_rate, or use bf16 or full precision instead of fp16; "
            "training_args.on_nonfinite: skip passes over a few such steps.",
        )
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    return StepResult(
        train_loss, grad_norm, sum(pack.num_row_tokens for pack in packs), num_supervised_tokens
    )


def _accumulate_gradients(
    sum_loss: SumLoss, packs: Sequence[Pack], num_supervised_tokens: int, precision: Precision
) -> float:
    """Add the gradient of the step's mean loss, pack by pack; return that loss."""
    # Summed on the device and asked for once: each question would make it wait.
    train_loss: torch.Tensor | float = 0.0
    for pack in packs:
        if not pack.num_supervised_tokens:
            continue
        with precision.autocast():
            loss = sum_loss(pack) / num_supervised_tokens
        scaled = loss if precision.scaler is None else precision.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]
        train_loss = train_loss + loss.detach()
    return float(train_loss)
