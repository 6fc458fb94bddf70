"""The device and how it is used: the section `hardware`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from llamafarm.strategy.sections.base import AtLeastOne, Positive, Section, or_auto, read_auto, read_no


class HalfPrecision(Section):
    """Which 16-bit numbers a kind of device may compute with; at most one of the two."""

    use_fp16: bool | None = None
    """Compute in float16: half the memory of float32, with loss scaling. Unset: chosen from the device."""
    use_bf16: bool | None = None
    """Compute in bfloat16: half the memory of float32, no loss scaling; CUDA needs Ampere or newer. Unset:
    chosen from the device."""

    @model_validator(mode="after")
    def _only_one(self) -> Self:
        if self.use_fp16 and self.use_bf16:
            raise PydanticCustomError("both_halves", "cannot have use_fp16 and use_bf16 both true")
        return self


class CudaPrecision(HalfPrecision):
    """The same for NVIDIA and AMD GPUs, with TF32."""

    use_tf32: bool | None = None
    """Let float32 matrix products round their inputs to TF32: several times faster on Ampere and newer, with
    10 bits of mantissa. Unset: chosen from the device."""


class Precision(Section):
    """The numbers to compute with, by device; only the block of the device in use is read."""

    cuda: CudaPrecision = CudaPrecision()
    """For `cuda` and `rocm`."""
    mps: HalfPrecision = HalfPrecision()
    """For Apple Silicon."""
    cpu: HalfPrecision = HalfPrecision()
    """For the processor."""


class Optimization(Section):
    """Trades of time for memory; a file may also write it at the strategy's top level."""

    gradient_checkpointing: Annotated[
        bool | None,
        BeforeValidator(read_auto),
        WithJsonSchema({"anyOf": [{"type": "boolean"}, {"const": "auto"}, {"type": "null"}]}),
    ] = None
    """Compute activations again in the backward pass and do not keep them: 30 to 50 % less memory, about 20 %
    more time. `true`: those of all blocks of the model; `false`: of none. Unset or `auto`: of as few blocks
    as the memory asks for, mostly none."""
    gradient_accumulation_steps: Annotated[int | Literal["auto"], or_auto(AtLeastOne)] | None = None
    """Micro-batches per optimizer step where `training_args.gradient_accumulation_steps` is not given."""
    mixed_precision: Annotated[
        Literal["no", "fp16", "bf16"] | None,
        BeforeValidator(read_no),
        BeforeValidator(read_auto),
        WithJsonSchema(
            {"anyOf": [{"type": "string", "enum": ["no", "fp16", "bf16", "auto"]}, {"type": "null"}]}
        ),
    ] = None
    """Numbers to compute with, whatever the device: 16-bit ones (fp16, bf16) take half the memory of float32
    (no) and are faster on GPUs and some processors. Wins over `precision`, which decides if this is unset or
    `auto`."""


class Hardware(Section):
    """The device to train on and how to use it."""

    device: Literal["auto", "cuda", "rocm", "mps", "cpu"] = "auto"
    """Device to train on; `auto` takes the fastest one present. Naming one that is absent is an error."""
    memory_gb: Positive | None = None
    """Memory of the device that training may use, in GB. Unset: what is free on it."""
    precision: Precision = Precision()
    """The numbers to compute with, by device."""
    optimization: Optimization = Optimization()
    """Trades of time for memory."""
