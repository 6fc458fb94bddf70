"""The numbers that a run computes in, by the guide's rules for each device.

bf16 only where the device has it, fp16 with loss scaling on CUDA only, TF32 from Ampere on, full precision
otherwise. On a processor the names of its instructions are not believed: a probe times both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llamafarm.errors import MachineError
from llamafarm.hardware.device import Device
from llamafarm.hardware.machine import AMPERE
from llamafarm.hardware.speed import measure_matmul_flops

_MIXED = "hardware.optimization.mixed_precision"

Measure = Callable[[str, str], float]
"""From a device's kind and a precision to floating point operations a second."""


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """What a step computes in: `fp32`, `bf16` or `fp16`, and why; `uses_tf32` for the products of fp32."""

    name: str
    why: str
    uses_tf32: bool = False


@dataclass(frozen=True, slots=True)
class PrecisionWishes:
    """What a strategy says of precision; None is for the device to decide.

    `mixed_precision` (no, fp16 or bf16) wins over the `use_*` settings of the device's own block.
    """

    mixed_precision: str | None = None
    use_fp16: bool | None = None
    use_bf16: bool | None = None
    use_tf32: bool | None = None


def choose_precision(
    device: Device, wishes: PrecisionWishes, measure: Measure = measure_matmul_flops
) -> PrecisionChoice:
    """Return what to compute in. Raises `MachineError`, naming what it can, for what the device cannot do."""
    has_tf32 = _has_tf32(device)
    if wishes.use_tf32 and not has_tf32:
        raise MachineError(
            f"{device.description} has no TF32, which NVIDIA's GPUs have from Ampere on",
            where=f"hardware.precision.{device.kind}.use_tf32",
            remedy="Write use_tf32: false, or leave it out.",
        )
    uses_tf32 = has_tf32 if wishes.use_tf32 is None else wishes.use_tf32
    name, where = _wished(device, wishes)
    if name is None:
        name, why = _choose(device, wishes, measure)
    else:
        _check(device, name, where)
        why = where + _slowness(device, name, measure)
    return PrecisionChoice(
        name, why + (", products in TF32" if name == "fp32" and uses_tf32 else ""), uses_tf32
    )


def _wished(device: Device, wishes: PrecisionWishes) -> tuple[str | None, str]:
    """Return the precision that the strategy names, if it names one, and where."""
    block = f"hardware.precision.{device.kind}"
    if wishes.mixed_precision is not None:
        return ("fp32" if wishes.mixed_precision == "no" else wishes.mixed_precision), _MIXED
    if wishes.use_bf16:
        return "bf16", f"{block}.use_bf16"
    if wishes.use_fp16:
        return "fp16", f"{block}.use_fp16"
    return None, ""


def _choose(device: Device, wishes: PrecisionWishes, measure: Measure) -> tuple[str, str]:
    """Return the device's own precision among those that the strategy does not exclude, and why."""
    if device.gpu is not None and device.kind == "cuda":
        if device.gpu.has_bf16 and wishes.use_bf16 is None:
            return "bf16", "this GPU has bfloat16"
        if wishes.use_fp16 is None:
            has_bf16 = "bf16 is switched off" if device.gpu.has_bf16 else "this GPU has no bfloat16"
            return "fp16", f"{has_bf16}; float16 with loss scaling"
        return "fp32", "fp16 and bf16 are switched off"
    if device.kind == "mps":
        return "fp32", "the guide: 16-bit numbers are not stable on MPS"
    if wishes.use_bf16 is False:
        return "fp32", "bf16 is switched off"
    return _choose_on_processor(measure)


# The least gain of bf16 over fp32, by the probe, that is worth a change of precision.
_CLEARLY_FASTER = 1.2


def _choose_on_processor(measure: Measure) -> tuple[str, str]:
    """Return bf16 where a probe finds it clearly faster than full precision: the processor computes in it."""
    gain, figures = _probe_bf16(measure)
    why = f"a probe found bf16 {gain:.1f} times as fast as fp32 ({figures})"
    return ("bf16", why) if gain >= _CLEARLY_FASTER else ("fp32", f"full precision on a processor; {why}")


def _slowness(device: Device, name: str, measure: Measure) -> str:
    """Return a warning where a processor was told to use bf16 and has none."""
    if device.kind != "cpu" or name != "bf16":
        return ""
    gain, figures = _probe_bf16(measure)
    return (
        ""
        if gain >= 1
        else f"; slow here: a probe found it {1 / gain:.1f} times slower than fp32 ({figures})"
    )


def _probe_bf16(measure: Measure) -> tuple[float, str]:
    """Return how many times as fast as fp32 bf16 is on a processor, and both measurements for people."""
    fp32, bf16 = measure("cpu", "fp32"), measure("cpu", "bf16")
    return bf16 / fp32, f"{bf16 / 1e9:.3g} against {fp32 / 1e9:.3g} GFLOP/s a core"


def _check(device: Device, name: str, where: str) -> None:
    if name == "fp16" and device.kind != "cuda":
        raise MachineError(
            f"fp16 is not stable on {device.kind}, and has loss scaling on CUDA only",
            where=where,
            remedy="Write mixed_precision: no, or leave it out.",
        )
    if name == "bf16" and device.gpu is not None and not device.gpu.has_bf16:
        alternative = "fp16" if device.kind == "cuda" else "no"
        raise MachineError(
            f"{device.description} does not compute in bf16",
            where=where,
            remedy=f"Write mixed_precision: {alternative}.",
        )


def _has_tf32(device: Device) -> bool:
    gpu = device.gpu
    is_nvidia = gpu is not None and gpu.kind == "cuda" and not gpu.is_rocm
    return is_nvidia and gpu is not None and (gpu.compute_capability or (0, 0)) >= AMPERE
