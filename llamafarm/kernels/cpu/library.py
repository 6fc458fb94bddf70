"""The functions of the compiled library, by their names and the numbers of their tensors."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch

from llamafarm.kernels.cpu.build import built_library

_NAMES = {torch.float32: "float", torch.bfloat16: "bfloat"}
_POINTER, _COUNT, _FLOAT, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_SIGNATURES: dict[str, list[Any]] = {
    "attend": [_POINTER] * 7,
    "attend_backward": [_POINTER] * 6,
    "gate": [_POINTER] * 3 + [_COUNT] * 4 + [_THREADS],
    "gate_backward": [_POINTER] * 5 + [_COUNT] * 5 + [_THREADS],
    "loss_and_gradient": [_POINTER] * 3 + [_COUNT] * 3 + [_FLOAT] * 2 + [_THREADS],
    "normalize": [_POINTER] * 4 + [_COUNT] * 3 + [_FLOAT, _THREADS],
    "normalize_backward": [_POINTER] * 5 + [_COUNT] * 4 + [_THREADS],
    "product": [_POINTER],
    "product_deep": [_POINTER],
    "product_turned": [_POINTER, _COUNT, _COUNT] * 2 + [_COUNT, _FLOAT, _POINTER, _THREADS],
    "rotate": [_POINTER] * 4 + [_COUNT] * 4 + [_POINTER, _FLOAT, _THREADS],
}


def has(name: str, dtype: torch.dtype) -> bool:
    """Return whether the library has a function for these numbers: attention in bf16 needs instructions."""
    return dtype in _NAMES and hasattr(_library(), f"{name}_{_NAMES[dtype]}")


def call(name: str, dtype: torch.dtype, *arguments: Any, variant: str = "") -> None:
    """Call a function: tensors as their addresses, counts and numbers as they are.

    `variant` is the activation of a gate.
    """
    _function(name, variant, dtype)(*arguments)


@cache
def _function(name: str, variant: str, dtype: torch.dtype) -> Any:
    full_name = "_".join(filter(None, (name, variant, _NAMES[dtype])))
    function = getattr(_library(), full_name)
    function.argtypes, function.restype = _SIGNATURES[name], None
    return function


@cache
def _library() -> ctypes.CDLL:
    """Return the library. Raises `BuildError`, or `OSError` if it cannot be loaded.

    Its OpenMP is torch's, which is there already under the same name: both share their threads.
    """
    try:
        return ctypes.CDLL(str(built_library()))
    except OSError:  # what was kept is damaged: another one takes its place
        return ctypes.CDLL(str(built_library(anew=True)))
