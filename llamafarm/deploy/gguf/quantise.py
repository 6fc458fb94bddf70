"""Numbers to the bytes of a tensor's type, by llama.cpp's own kernels.

The library of the `xllamacpp` runtime exports `ggml_quantize_chunk`; what is quantised here is therefore, bit
for bit, what llama.cpp makes of the same numbers. Without that library (on Windows) the `gguf` library does
the types that it knows.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants

from llamafarm.deploy.gguf.types import BF16, F16, F32, num_bytes
from llamafarm.errors import MachineError

# Numbers that are worked on at a time: as many as there are in 16 MB of fp32.
_CHUNK_NUMBERS = 4 * 2**20
_PLAIN = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}


def quantise(
    tensor_RC: torch.Tensor, type_: GGMLQuantizationType, importance_C: np.ndarray[Any, Any] | None = None
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the bytes of a tensor (rows, numbers of a row), some rows at a time.

    `importance_C` says how much the rounding of each number of a row matters. Raises `MachineError` for a
    type that needs the runtime where there is none.
    """
    rows_RC = tensor_RC.reshape(-1, tensor_RC.shape[-1]) if tensor_RC.dim() else tensor_RC.reshape(1, 1)
    num_rows = max(_CHUNK_NUMBERS // rows_RC.shape[1], 1)
    for chunk_RC in torch.split(rows_RC, num_rows):
        if (dtype := _PLAIN.get(type_)) is not None:
            yield chunk_RC.to(dtype).contiguous().view(torch.uint8).numpy()
        else:
            yield _quantise_rows(chunk_RC.float().contiguous().numpy(), type_, importance_C)


def _quantise_rows(
    rows_RC: np.ndarray[Any, Any],
    type_: GGMLQuantizationType,
    importance_C: np.ndarray[Any, Any] | None,
) -> np.ndarray[Any, Any]:
    kernel = _kernel()
    if kernel is None:
        try:
            packed: np.ndarray[Any, Any] = quants.quantize(rows_RC, type_)
        except NotImplementedError:
            raise MachineError(
                f"weights of the type {type_.name} need llama.cpp's kernels, which are not installed",
                where="export.quantization",
                remedy="Run `pip install xllamacpp`, or choose q8_0 or f16.",
            ) from None
        return packed
    return _in_threads(kernel, rows_RC, type_, importance_C)


def _in_threads(
    kernel: Any,
    rows_RC: np.ndarray[Any, Any],
    type_: GGMLQuantizationType,
    importance_C: np.ndarray[Any, Any] | None,
) -> np.ndarray[Any, Any]:
    num_rows, row = rows_RC.shape
    packed = np.empty(num_bytes(type_, rows_RC.shape), dtype=np.uint8)
    weights = None
    if importance_C is not None:
        weights = np.ascontiguousarray(importance_C, dtype=np.float32)
        assert weights.shape == (row,), (weights.shape, row)

    def work(first: int, end: int) -> None:
        # ctypes lets other threads run meanwhile.
        kernel(
            int(type_),
            rows_RC.ctypes.data,
            packed.ctypes.data,
            first * row,
            end - first,
            row,
            weights.ctypes.data if weights is not None else None,
        )

    num_threads = min(os.cpu_count() or 1, num_rows)
    bounds = [num_rows * place // num_threads for place in range(num_threads + 1)]
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))
    return packed


@lru_cache(maxsize=1)
def _kernel() -> Any:
    """Return llama.cpp's `ggml_quantize_chunk`, or None where the runtime is not installed."""
    spec = find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        return None
    libraries = sorted(Path(spec.origin).parent.glob("xllamacpp*.so"))
    if not libraries:
        return None
    # size_t ggml_quantize_chunk(type, const float * src, void * dst, start, nrows, n_per_row, imatrix)
    kernel = ctypes.CDLL(str(libraries[0])).ggml_quantize_chunk
    number = ctypes.c_int64
    pointer = ctypes.c_void_p
    kernel.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    kernel.restype = ctypes.c_size_t
    return kernel
