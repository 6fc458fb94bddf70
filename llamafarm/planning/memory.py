"""Peak memory of a training run by part, from plain numbers.

What is counted is what a step of ours really keeps: rows end to end without padding, attention within each
document, logits at supervised positions only. `activations` has the inventory of a block; `fit` asks here
until something fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace

from llamafarm.planning.activations import block_backward_bytes, evaluation_bytes, loss_bytes, saved_bytes
from llamafarm.planning.request import QLORA, MemoryRequest, PackSize

_FP32_BYTES = 4
_ADAM_MOMENTS = 2
_MIB = 2**20

# Beside the 4 bits of a weight, its block's scale: one byte for 64 weights with double quantization.
_SCALE_BYTES = 1 / 64

# Buffers of the matrix libraries, autograd's and Python's objects of a step. Measured on this project's
# machine (2 cores, torch 2.13): resident memory of first steps, less the tensors. The others are assumptions.
_COMPUTE_BYTES = {"cpu": 40 * _MIB, "mps": 100 * _MIB, "cuda": 500 * _MIB}

# Kernels that oneDNN compiles for 16-bit products of each shape, of which `process.keep_few_kernels` keeps
# 128 (resident memory over 80 packs of different lengths grew by 23 MiB, and then no more).
_KEPT_KERNELS_BYTES = 25 * _MIB

# What an allocator holds beyond what is in use, as a part of what a step saves and of what the backward pass
# of a block takes. glibc cannot give a freed block to the next tensor of the same size, because torch asks
# for aligned ones, which need room to be aligned in: 0.7 to 2.1 times the saved tensors came on top, the more
# the longer packs of changing sizes went on (eleven runs, 20 to 135 M weights); with checkpointing, where all
# tensors of a block but one are freed, it was what the pair gives within 15 % (four runs). Where some blocks
# are checkpointed, the larger of the two is taken, which was not measured.
# With every block given back when it is freed, nothing is left over. The GPUs' are assumptions.
_HEAP_SLACK, _HEAP_SLACK_CHECKPOINTED = 1.3, (4.8, 3.5)
_SLACK = {"mps": 0.1, "cuda": 0.1}
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


@dataclass(frozen=True, slots=True)
class _Moment:
    """What a moment of a run takes beside process and weights, in bytes; `allocator` is what a heap keeps."""

    adapters: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    loading: int = 0
    allocator: int = 0


def predict_memory(request: MemoryRequest) -> MemoryPlan:
    """Return the peak of a run by part: in a training step, in evaluation or in loading, whatever is most."""
    process = request.process_bytes + _COMPUTE_BYTES[request.device_kind]
    if request.device_kind == "cpu" and request.compute_bytes < _FP32_BYTES:
        process += _KEPT_KERNELS_BYTES
    weights = held_weight_bytes(request)
    plans = [
        MemoryPlan(process=process, weights=weights, **asdict(moment)) for moment in _moments_of(request)
    ]
    return max(plans, key=lambda plan: plan.total_bytes)


def held_weight_bytes(request: MemoryRequest) -> int:
    """Return what the base model's weights take once they are loaded."""
    shape = request.shape
    if request.method != QLORA:
        return int(shape.num_parameters * request.weight_bytes)
    unquantized = (shape.num_parameters - shape.num_linear_weights) * request.residual_bytes
    return int(unquantized + shape.num_linear_weights * (0.5 + _SCALE_BYTES))


def _moments_of(request: MemoryRequest) -> Iterator[_Moment]:
    """Yield every moment of a run that may be its peak."""
    yield _Moment(loading=_loading_bytes(request))
    trained = request.num_trained_weights * _FP32_BYTES
    idle = _Moment(adapters=0 if request.is_full else trained, optimizer=_ADAM_MOMENTS * trained)
    yield replace(idle, gradients=trained + _gradient_of_embedding_bytes(request))
    most_kept = 0
    for pack in request.training_packs:
        saved = saved_bytes(request, pack)
        # The first pack of a step finds no gradients; they come as its activations go.
        gradients = trained if pack.finds_gradients else 0
        kept = _kept_by_allocator_bytes(request, pack)
        if request.is_full:  # gradients and moments take what the activations left
            kept = max(kept - trained - idle.optimizer, 0)
        most_kept = max(most_kept, kept)
        at_pack = replace(idle, gradients=gradients, allocator=kept)
        yield replace(at_pack, activations=saved, logits=loss_bytes(request, pack))
        yield replace(at_pack, activations=saved + block_backward_bytes(request, pack))
        # In the first block, where the backward pass ends, only its own activations are left.
        gradients = max(gradients, trained - _last_gradient_bytes(request))
        in_block = block_backward_bytes(_with_all_checkpointed(request), pack)
        yield replace(at_pack, gradients=gradients, activations=in_block)
    for pack in request.evaluation_packs:
        yield replace(idle, logits=evaluation_bytes(request, pack), allocator=most_kept)


def _kept_by_allocator_bytes(request: MemoryRequest, pack: PackSize) -> int:
    saved = saved_bytes(request, pack)
    if request.returns_freed_memory:
        return int(_SLACK_RETURNING * saved)
    if request.device_kind != "cpu":
        return int(_SLACK[request.device_kind] * saved)
    kept = int(_HEAP_SLACK * saved)
    if not request.checkpointed_blocks:
        return kept
    per_saved, per_block = _HEAP_SLACK_CHECKPOINTED
    wholly = _with_all_checkpointed(request)
    in_block = block_backward_bytes(wholly, pack)
    return max(kept, int(per_saved * saved_bytes(wholly, pack) + per_block * in_block))


def _with_all_checkpointed(request: MemoryRequest) -> MemoryRequest:
    return replace(request, checkpointed_blocks=request.shape.num_layers)


def _last_gradient_bytes(request: MemoryRequest) -> int:
    """Return what the gradient takes that comes after the blocks': of an embedding that is not the head."""
    is_last = request.is_full and not request.shape.is_tied
    return request.shape.num_head_weights * _FP32_BYTES if is_last else 0


def _gradient_of_embedding_bytes(request: MemoryRequest) -> int:
    """Return what a tied embedding's second gradient takes before it is added to the first."""
    is_added = request.is_full and request.shape.is_tied
    return request.shape.num_head_weights * _FP32_BYTES if is_added else 0


def _loading_bytes(request: MemoryRequest) -> int:
    """Return what loading takes beside the weights: the files, if the numbers in them are others."""
    held = held_weight_bytes(request)
    is_converted = abs(request.stored_bytes - held) > held // 50  # files hold a header and what is tied, too
    return request.stored_bytes if is_converted and request.device_kind == "cpu" else 0
