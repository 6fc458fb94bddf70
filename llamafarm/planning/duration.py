"""Time and disk of a run: floating point operations from the model's shape and the lengths of the rows.

Operations count 2 for a multiplication with its addition; what a faster or slower implementation does beside
the model's own mathematics is in `EFFICIENCY`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llamafarm.planning.request import MemoryRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Of the speed of torch's matrix products, how much a whole training step keeps. CPU: `part_of_peak` of runs
# on two Zen 5 cores, LoRA on attention, at 135 M weights: with compiled kernels 0.63 in bf16 and 1.5 in fp32,
# whose products are not torch's, without them 0.47 and 0.7 (2026-11-26). CUDA: 0.73 at 8 B weights, 0.57 at
# 1 B on an H100 (2026-11-26); a model of some million is bound by the processor that starts its kernels, and
# far slower. MPS: an assumption, not measured.
EFFICIENCY = {"cpu": 0.6, "cuda": 0.6, "mps": 0.3}

# Bits of a weight in a GGUF file: of the block formats by their definition, of the mixed ones (_k_m, _k_s) as
# llama.cpp's table for an 8 B model has them.
GGUF_BITS = {
    "f32": 32.0,
    "f16": 16.0,
    "bf16": 16.0,
    "q8_0": 8.5,
    "q6_k": 6.5625,
    "q5_k_m": 5.7,
    "q5_k_s": 5.57,
    "q5_1": 6.0,
    "q5_0": 5.5,
    "q4_k_m": 4.89,
    "q4_k_s": 4.67,
    "q4_1": 5.0,
    "q4_0": 4.5,
    "q3_k_m": 4.0,
    "q2_k": 3.16,
}

_FP32_BYTES, _HALF_BYTES = 4, 2


@dataclass(frozen=True, slots=True)
class RowLengths:
    """The lengths of rows that are trained on, summed: tokens, supervised ones, and squares of the tokens."""

    num_tokens: int
    num_supervised_tokens: int
    sum_of_squares: int

    @classmethod
    def of(cls, lengths_N: NDArray[np.int32], num_supervised_N: NDArray[np.int32]) -> RowLengths:
        """Return the sums over the tokens and the supervised tokens of rows."""
        lengths = lengths_N.astype(np.int64)
        return cls(int(lengths.sum()), int(num_supervised_N.sum(dtype=np.int64)), int((lengths**2).sum()))


def training_flops(request: MemoryRequest, lengths: RowLengths) -> float:
    """Return the operations of training once on rows of these lengths.

    A weight costs 2 a token forward, 2 for its input's gradient and, if it is trained, 2 for its own; causal
    attention 6·L·h·d·Σs²; the head works at supervised positions only; checkpointed blocks go forward twice.
    """
    shape = request.shape
    passes = 6 if request.is_full else 4
    extra = 2 * request.checkpointed_part
    linear = (passes + extra) * lengths.num_tokens * shape.num_linear_weights
    adapters = 0.0
    if not request.is_full:
        num_weights = shape.num_adapter_weights(request.rank, request.targets)
        adapters = (6 + extra) * lengths.num_tokens * num_weights
    heads = shape.num_layers * shape.num_heads * shape.head_dim
    attention = (6 + extra) * heads * lengths.sum_of_squares
    head = passes * lengths.num_supervised_tokens * shape.num_head_weights
    return float(linear + adapters + attention + head)


def evaluation_flops(request: MemoryRequest, lengths: RowLengths) -> float:
    """Return the operations of one forward pass over rows of these lengths."""
    shape = request.shape
    heads = shape.num_layers * shape.num_heads * shape.head_dim
    return float(
        2 * lengths.num_tokens * shape.num_linear_weights
        + 2 * heads * lengths.sum_of_squares
        + 2 * lengths.num_supervised_tokens * shape.num_head_weights
    )


def estimate_seconds(flops: float, flops_per_second: float, efficiency: float) -> float:
    """Return the time for `flops` on a device whose matrix products reach `flops_per_second`."""
    return flops / (flops_per_second * efficiency)


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """Bytes that a run leaves on disk, by part."""

    checkpoints: int
    final_model: int
    export: int

    @property
    def total_bytes(self) -> int:
        """Return all of it."""
        return self.checkpoints + self.final_model + self.export


def plan_disk(request: MemoryRequest, *, num_checkpoints: int, quantization: str | None) -> DiskPlan:
    """Return what a run leaves on disk.

    `num_checkpoints` are kept at a time, with the one being written; `quantization` is the GGUF file's, None
    without one. Its export also holds the merged model in 16 bits for a while.
    """
    trained_bytes = request.num_trained_weights * _FP32_BYTES
    # AdamW's two moments beside the weights; an adapter's own numbers, too, as what others read is rounded.
    copies = 3 if request.is_full else 4
    export = 0
    if quantization is not None:
        merged = request.shape.num_parameters * _HALF_BYTES
        export = merged + int(request.shape.num_parameters * GGUF_BITS[quantization] / 8)
    return DiskPlan(num_checkpoints * copies * trained_bytes, trained_bytes, export)
