"""How fast a device multiplies matrices, measured: it tells precisions apart, and what time a run takes."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

# A product takes about a millisecond on one core: short enough that some of them are not interrupted, and
# bearable where a precision is only emulated and takes a hundred times as long.
_CPU_WIDTH = 256
# Large enough to fill a GPU; its two matrices take 130 MB in fp32.
_GPU_WIDTH = 4096
_SECONDS = 0.1
_FEWEST = 3


def measure_matmul_flops(device_kind: str, dtype_name: str) -> float:
    """Return the floating point operations a second of a linear layer's forward pass: fp32, bf16 or fp16.

    Those of a GPU, or of one core of a processor. Measured once in a process, in about a tenth of a second
    for each precision.
    """
    names = ("fp32", "bf16")
    return _measure(device_kind, names if dtype_name in names else (dtype_name,))[dtype_name]


def measure_peak_flops(device_kind: str, dtype_name: str) -> float:
    """Return the speed of the device's matrix products, on all the cores that torch uses of a processor."""
    import torch

    num_cores = torch.get_num_threads() if device_kind == "cpu" else 1
    return num_cores * measure_matmul_flops(device_kind, dtype_name)


@cache
def _measure(device_kind: str, dtype_names: tuple[str, ...]) -> dict[str, float]:
    """Return the operations a second in each precision, from the fastest product of each.

    What else runs on the machine slows a product down and never speeds it up; and the precisions take turns,
    so that a busy moment falls on both. On two busy cores whose bf16 is twice as fast as fp32, timing one
    after the other found it 7.5 times as fast, and two threads that wait for each other 22 times; taking
    turns on one core found 1.8 to 2.05 times in each of 14 trials.
    """
    import torch

    width = _CPU_WIDTH if device_kind == "cpu" else _GPU_WIDTH
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    # Not all alike, which spares a GPU work, and not random, which would move the seeds of the run.
    numbers_TD = torch.linspace(-1, 1, width * width, device=device_kind).reshape(width, width)
    factors = {name: numbers_TD.to(dtypes[name]) for name in dtype_names}
    seconds: dict[str, list[float]] = {name: [] for name in dtype_names}
    num_threads = torch.get_num_threads()
    if device_kind == "cpu":
        torch.set_num_threads(1)
    try:
        started = time.perf_counter()
        while _wants_more(seconds, time.perf_counter() - started):
            for name, factor_TD in factors.items():
                seconds[name].append(_time_product(torch, device_kind, factor_TD))
    finally:
        if device_kind == "cpu":
            torch.set_num_threads(num_threads)
    # The first only warms up.
    return {name: 2 * width**3 / min(taken[1:]) for name, taken in seconds.items()}


def _wants_more(seconds: dict[str, list[float]], elapsed: float) -> bool:
    return elapsed < _SECONDS * len(seconds) or min(map(len, seconds.values())) < _FEWEST


def _time_product(torch: Any, device_kind: str, factor_TD: Any) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        torch.nn.functional.linear(factor_TD, factor_TD)
    if device_kind != "cpu":
        getattr(torch, device_kind).synchronize()
    return time.perf_counter() - started
