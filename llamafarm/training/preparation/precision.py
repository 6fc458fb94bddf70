"""The numbers that a run computes in, as its strategy, its device and its own beginning say."""

from __future__ import annotations

from dataclasses import replace

from llamafarm.errors import MachineError
from llamafarm.hardware.device import Device
from llamafarm.hardware.precision import PrecisionChoice, PrecisionWishes, choose_precision
from llamafarm.hardware.process import keep_few_kernels
from llamafarm.strategy.schema import Strategy
from llamafarm.training.preparation.rows import Choice


def settle_precision(
    strategy: Strategy, device: Device, choices: list[Choice], before: str | None
) -> PrecisionChoice:
    """Return what a run computes in; `before` is what it did where it goes on, None where it begins."""
    if device.kind == "cpu":  # whose probe of the precision multiplies in 16 bits already
        keep_few_kernels()
    block = getattr(strategy.hardware.precision, device.kind)
    wishes = PrecisionWishes(
        mixed_precision=strategy.hardware.optimization.mixed_precision,
        use_fp16=block.use_fp16,
        use_bf16=block.use_bf16,
        use_tf32=getattr(block, "use_tf32", None),
    )
    precision = _as_before(device, wishes, before) or choose_precision(device, wishes)
    choices.append(Choice("precision", precision.name, precision.why))
    return precision


def _as_before(device: Device, wishes: PrecisionWishes, before: str | None) -> PrecisionChoice | None:
    """Return what a run computed in before, unless the strategy names another or the device has it not.

    A probe may come out otherwise the second time, and the result would not be the same.
    """
    is_asked = wishes.mixed_precision or wishes.use_fp16 or wishes.use_bf16
    if before is None or is_asked:
        return None
    try:
        again = choose_precision(
            device, replace(wishes, mixed_precision="no" if before == "fp32" else before)
        )
    except MachineError:
        return None
    return replace(again, why="as the run began")
