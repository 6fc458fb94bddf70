"""How fast a device multiplies matrices, measured: it tells precisions apart, and what time a run takes."""

from __future__ import annotations

import time
from functools import cache

_ROWS = {"cpu": 512, "mps": 2048, "cuda": 8192}
_WIDTH = {"cpu": 512, "mps": 2048, "cuda": 8192}
"""Small on a processor, where numbers that it only emulates may take a hundred times as long."""
_SECONDS = 0.1


@cache
def measure_matmul_flops(device_kind: str, dtype_name: str) -> float:
    """Return the floating point operations a second of a linear layer's forward pass: fp32, bf16 or fp16.

    The best of a tenth of a second, at least three products, the first of which only warms up: what else runs
    on the machine slows a product down and never speeds it up.
    """
    import torch

    num_rows, width = _ROWS[device_kind], _WIDTH[device_kind]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype_name]
    hidden_TD = torch.ones(num_rows, width, dtype=dtype, device=device_kind)
    weight_DD = torch.ones(width, width, dtype=dtype, device=device_kind)
    seconds: list[float] = []
    with torch.inference_mode():
        while len(seconds) < 3 or sum(seconds) < _SECONDS:
            started = time.perf_counter()
            torch.nn.functional.linear(hidden_TD, weight_DD)
            if device_kind != "cpu":
                getattr(torch, device_kind).synchronize()
            seconds.append(time.perf_counter() - started)
    return 2 * num_rows * width * width / min(seconds[1:])
