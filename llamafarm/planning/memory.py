"""Peak memory of a training run by part, from plain numbers.

What is counted is what a step of ours really keeps: rows end to end without padding, attention within each
document, logits at supervised positions only. `activations` has the inventory of a block; `fit` asks here
until something fits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from llamafarm.planning.activations import block_backward_bytes, evaluation_bytes, loss_bytes, saved_bytes
from llamafarm.planning.request import QLORA, MemoryRequest

_FP32_BYTES = 4
_ADAM_MOMENTS = 2
_MIB = 2**20

# Beside the 4 bits of a weight, its block's scale: one byte for 64 weights with double quantization.
_SCALE_BYTES = 1 / 64

# Buffers of the matrix libraries, autograd's and Python's objects of a step. Measured on this project's
# machine (2 cores, torch 2.13): resident memory of first steps, less the tensors. The others are assumptions.
_COMPUTE_BYTES = {"cpu": 40 * _MIB, "mps": 100 * _MIB, "cuda": 500 * _MIB}

# What an allocator holds beyond what is in use, as a part of the activations. glibc cannot give a freed block
# to the next tensor of the same size, because torch asks for aligned ones, which need room to be aligned in:
# with packs of changing sizes 1.0 to 2.0 times the activations came on top (seven runs, 20 to 135 M weights).
# With every block given back when it is freed, nothing is left over. The GPUs' are assumptions.
_SLACK = {"cpu": 1.4, "mps": 0.1, "cuda": 0.1}
_SLACK_RETURNING = 0.03


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes at the peak of a run, by part; the parts add up to `total_bytes`.

    `process` is Python and its libraries, `loading` the files of weights while these are converted, if that
    is the peak; `allocator` what is freed and not given back.
    """

    process: int
    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    loading: int
    allocator: int

    @property
    def total_bytes(self) -> int:
        """Return the peak."""
        return sum(num_bytes for _, num_bytes in self.parts())

    def parts(self) -> list[tuple[str, int]]:
        """Return the parts with their names."""
        return [(part.name, getattr(self, part.name)) for part in fields(self)]


def predict_memory(request: MemoryRequest) -> MemoryPlan:
    """Return the peak of a run by part: in a training step, in evaluation or in loading, whatever is most."""
    trained = request.num_trained_weights * _FP32_BYTES
    moments = _ADAM_MOMENTS * trained
    process = request.process_bytes + _COMPUTE_BYTES[request.device_kind]
    weights = held_weight_bytes(request)
    adapters = 0 if request.is_full else trained
    moments_in_use = [
        _plan(request, process, weights, adapters, moments, *working)
        for working in _working_sets(request, trained)
    ]
    loading = _plan(request, process, weights, 0, 0, 0, 0, 0, loading=_loading_bytes(request))
    return max([*moments_in_use, loading], key=lambda plan: plan.total_bytes)


def held_weight_bytes(request: MemoryRequest) -> int:
    """Return what the base model's weights take once they are loaded."""
    shape = request.shape
    if request.method != QLORA:
        return int(shape.num_parameters * request.weight_bytes)
    unquantized = (shape.num_parameters - shape.num_linear_weights) * request.residual_bytes
    return int(unquantized + shape.num_linear_weights * (0.5 + _SCALE_BYTES))


def _working_sets(request: MemoryRequest, trained: int) -> list[tuple[int, int, int]]:
    """Return gradients, activations and logits at each moment of a run that may be its peak."""
    moments = [(trained + _gradient_of_embedding_bytes(request), 0, 0)]
    for pack in request.training_packs:
        # The first pack of a step finds no gradients; they come as its activations go.
        before = trained if pack.finds_gradients else 0
        saved = saved_bytes(request, pack)
        moments.append((before, saved, loss_bytes(request, pack)))
        moments.append((before, saved + block_backward_bytes(request, pack.num_tokens), 0))
    moments += [(0, 0, evaluation_bytes(request, pack)) for pack in request.evaluation_packs]
    return moments


def _plan(
    request: MemoryRequest,
    process: int,
    weights: int,
    adapters: int,
    optimizer: int,
    gradients: int,
    activations: int,
    logits: int,
    *,
    loading: int = 0,
) -> MemoryPlan:
    part = _SLACK_RETURNING if request.returns_freed_memory else _SLACK[request.device_kind]
    slack = int(part * activations)
    if request.is_full:  # gradients and moments take what the activations left
        slack = max(slack - gradients - optimizer, 0)
    return MemoryPlan(process, weights, adapters, gradients, optimizer, activations, logits, loading, slack)


def _gradient_of_embedding_bytes(request: MemoryRequest) -> int:
    """Return what a tied embedding's second gradient takes before it is added to the first."""
    is_added = request.is_full and request.shape.is_tied
    return request.shape.num_head_weights * _FP32_BYTES if is_added else 0


def _loading_bytes(request: MemoryRequest) -> int:
    """Return what loading takes beside the weights: the files, if the numbers in them are others."""
    held = held_weight_bytes(request)
    is_converted = abs(request.stored_bytes - held) > held // 50  # files hold a header and what is tied, too
    return request.stored_bytes if is_converted and request.device_kind == "cpu" else 0
