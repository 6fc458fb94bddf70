"""The matrix products that a LoRA step cannot do without, timed alone at their shapes.

Forward, and the gradient of the input, of every frozen linear layer; the four products of each adapter with
its two gradients; the head where it is trained on. Attention is left out: it is a floor. Below the lowest
adapter no gradient is needed, so the first layer's q, k and v pass none on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import torch
from torch.nn import functional
from transformers import LlamaConfig

_REPETITIONS = 5
_READ_THE_EMBEDDING = ("q_proj", "k_proj", "v_proj")
_GPU_WIDTH, _GPU_REPETITIONS = 8192, 200


def measure_peak(dtype: torch.dtype) -> float:
    """Return the operations a second of `F.linear` with 1,024 rows, 576 to 2,048 wide: the fastest."""
    best = 0.0
    for width in (576, 1024, 2048):
        seconds = _seconds_of(1024, width, width, dtype)
        best = max(best, 2 * 1024 * width * width / seconds)
    return best


def measure_gpu_peak() -> float:
    """Return the operations a second of bf16 products of 8,192 cubed on a CUDA device.

    Random numbers, which make a GPU slower than equal ones; the weight as it lies and transposed; of each the
    median, once the GPU is warm; of both the faster.
    """
    left, right = (torch.randn(_GPU_WIDTH, _GPU_WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = min(_median_gpu_seconds(left, factor) for factor in (right, right.T))
    del left, right
    torch.cuda.empty_cache()
    return 2 * _GPU_WIDTH**3 / best


def _median_gpu_seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    out = torch.empty_like(left)
    ticks = [torch.cuda.Event(enable_timing=True) for _ in range(2 * _GPU_REPETITIONS)]
    for tick in ticks:
        torch.mm(left, right, out=out)
        tick.record()
    torch.cuda.synchronize()
    # The first half warms up.
    timed = ticks[_GPU_REPETITIONS:]
    return statistics.median(one.elapsed_time(other) / 1e3 for one, other in pairwise(timed))


def model_flops(config: LlamaConfig, sizes: Sequence[int], rank: int, targets: Sequence[str]) -> float:
    """Return the operations that a LoRA step over rows cannot do without, nothing computed twice.

    `sizes` are the rows' tokens, supervised tokens and squared lengths, each summed. A frozen weight costs 2
    a token forward and 2 for its input's gradient where that is needed, an adapter's 6, causal attention
    6·L·h·d·Σs² in all, a weight of the frozen head 4 a supervised token.
    """
    num_tokens, num_supervised, squares = sizes
    layers, hidden = config.num_hidden_layers, config.hidden_size
    frozen = adapters = 0
    for name, (width_in, width_out) in _widths(config).items():
        passes_on = layers - (name in _READ_THE_EMBEDDING)
        frozen += 2 * (layers + passes_on) * width_in * width_out
        adapters += 6 * layers * rank * (width_in + width_out) * (name in targets)
    attention = 6 * layers * hidden * squares
    head = 4 * num_supervised * config.vocab_size * hidden
    return float(num_tokens * (frozen + adapters) + attention + head)


def _widths(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of the linear layers of a block."""
    hidden, inner = config.hidden_size, config.intermediate_size
    key_width = hidden // config.num_attention_heads * config.num_key_value_heads
    return {
        "q_proj": (hidden, hidden),
        "k_proj": (hidden, key_width),
        "v_proj": (hidden, key_width),
        "o_proj": (hidden, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def floor_seconds(
    config: LlamaConfig,
    packs: Sequence[tuple[int, int]],
    rank: int,
    targets: Sequence[str],
    dtype: torch.dtype,
) -> tuple[float, float]:
    """Return the seconds and the operations of the products of packs: each is tokens, supervised tokens."""
    hidden, layer = config.hidden_size, _widths(config)
    seconds, operations = 0.0, 0.0
    _seconds_of.cache_clear()  # the machine's speed changes: each call times every shape anew

    def add(times: int, num_rows: int, width_in: int, width_out: int) -> None:
        nonlocal seconds, operations
        seconds += times * _seconds_of(num_rows, width_in, width_out, dtype)
        operations += times * 2 * num_rows * width_in * width_out

    for num_tokens, num_supervised in packs:
        for name, (width_in, width_out) in layer.items():
            num_layers = config.num_hidden_layers
            add(num_layers, num_tokens, width_in, width_out)
            passes_on = num_layers - (name in _READ_THE_EMBEDDING)
            add(passes_on, num_tokens, width_out, width_in)
            if name in targets:
                # Forward through A and B, back through B and A; then the gradients of both.
                add(num_layers, num_tokens, width_in, rank)
                add(num_layers, num_tokens, rank, width_out)
                add(num_layers, num_tokens, width_out, rank)
                add(passes_on, num_tokens, rank, width_in)
                add(num_layers, width_in, num_tokens, rank)
                add(num_layers, width_out, num_tokens, rank)
        add(1, num_supervised, hidden, config.vocab_size)
        add(1, num_supervised, config.vocab_size, hidden)
    return seconds, operations


@cache
def _seconds_of(num_rows: int, width_in: int, width_out: int, dtype: torch.dtype) -> float:
    """Return the time of one product (num_rows, width_in) with (width_out, width_in), the median of some."""
    left = torch.linspace(-1, 1, num_rows * width_in).reshape(num_rows, width_in).to(dtype)
    right = torch.linspace(-1, 1, width_out * width_in).reshape(width_out, width_in).to(dtype)
    return _median_seconds(lambda: functional.linear(left, right))


def _median_seconds(compute: Callable[[], torch.Tensor]) -> float:
    times = []
    with torch.inference_mode():
        compute()
        for _ in range(_REPETITIONS):
            started = time.perf_counter()
            compute()
            times.append(time.perf_counter() - started)
    return statistics.median(times)
