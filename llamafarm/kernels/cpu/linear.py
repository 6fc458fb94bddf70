"""Sums of products on a processor, each in one pass; contracts as in `products`.

In fp32 they take half the time of torch's on AMD's processors (480 to 220 GFLOP/s on two cores of Zen 5) and
no more on others. In bf16 torch's are as fast, and faster where a processor has tiles for them: only what
torch is slow at is computed here, the gradients of adapters and the head's backward pass.

Axes: T tokens, K what is summed over, O outputs, R ranks of adapters.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llamafarm.kernels.cpu.choice import is_compiled
from llamafarm.kernels.cpu.library import call, has

if TYPE_CHECKING:
    from llamafarm.kernels.products import Term

_POINTER, _COUNT = ctypes.c_void_p, ctypes.c_int64
# From so many numbers in a sum on, its left factor falls out of the caches between two panels of columns.
_DEEP = 8192
# What sums of so many rows take is in the cache of a thread.
_MOST_DEEP_ROWS, _COLUMNS_FOR_A_THREAD = 512, 64


class _Term(ctypes.Structure):
    """`Term` of source/linear.cpp."""

    _fields_ = (
        ("left", _POINTER),
        ("left_row", _COUNT),
        ("right", _POINTER),
        ("right_row", _COUNT),
        ("count", _COUNT),
        ("is_along", _COUNT),
    )


class _Product(ctypes.Structure):
    """`Product` of source/linear.cpp."""

    _fields_ = (
        ("rows", _COUNT),
        ("columns", _COUNT),
        ("num_terms", _COUNT),
        ("terms", ctypes.POINTER(_Term)),
        ("bias", _POINTER),
        ("added", _POINTER),
        ("added_row", _COUNT),
        ("out", _POINTER),
        ("out_row", _COUNT),
        ("num_threads", _COUNT),
    )


def can_multiply(terms: Sequence[Term], *, turned: bool = False) -> bool:
    """Return whether these terms are summed here; `turned` asks for `multiply_turned`."""
    dtype = terms[0].left_TK.dtype
    if not is_compiled(terms[0].left_TK) or not has("product_turned", dtype):
        return False
    if dtype != torch.float32 and not turned and not (_is_deep(terms) and not _has_tiles()):
        return False
    return all(
        isinstance(right, torch.Tensor)
        and right.dtype == left_TK.dtype == dtype
        and left_TK.stride(1) == right.stride(1) == 1
        for left_TK, right, _ in terms
    )


def _is_deep(terms: Sequence[Term]) -> bool:
    """Return whether a sum is that of the head's backward pass, and wide enough for all threads."""
    left_TK, right, along = terms[0]
    if len(terms) > 1 or not along or not isinstance(right, torch.Tensor):
        return False
    num_rows, depth = left_TK.shape
    if depth < _DEEP or num_rows > _MOST_DEEP_ROWS or depth % 2 or left_TK.stride(0) % 2:
        return False
    return right.shape[1] >= _COLUMNS_FOR_A_THREAD * torch.get_num_threads()


@cache
def _has_tiles() -> bool:
    """Return whether the processor multiplies 16 bits by tiles (AMX), which torch's products know."""
    return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")


def multiply(
    terms: Sequence[Term],
    bias_O: torch.Tensor | None,
    added_TO: torch.Tensor | None,
    out_TO: torch.Tensor | None,
) -> torch.Tensor:
    """Return the sum of the terms, of a bias and of what is added; into `out_TO` if that is given."""
    if out_TO is None:
        left_TK, right, along = terms[0]
        assert isinstance(right, torch.Tensor)
        out_TO = torch.empty(len(left_TK), right.shape[1 if along else 0], dtype=left_TK.dtype)
    assert out_TO.stride(1) == 1 and (added_TO is None or added_TO.stride(1) == 1)
    product = _Product(
        rows=len(out_TO),
        columns=out_TO.shape[1],
        num_terms=len(terms),
        terms=(_Term * len(terms))(*map(_term_of, terms)),
        bias=None if bias_O is None else bias_O.data_ptr(),
        added=None if added_TO is None else added_TO.data_ptr(),
        added_row=0 if added_TO is None else added_TO.stride(0),
        out=out_TO.data_ptr(),
        out_row=out_TO.stride(0),
        num_threads=torch.get_num_threads(),
    )
    call("product_deep" if _is_deep(terms) else "product", out_TO.dtype, ctypes.byref(product))
    return out_TO


def multiply_turned(left_TR: torch.Tensor, right_TO: torch.Tensor, factor: float) -> torch.Tensor:
    """Return left.T times right times `factor`, (R, O) in fp32."""
    out_RO = torch.empty(left_TR.shape[1], right_TO.shape[1], dtype=torch.float32)
    call(
        "product_turned",
        left_TR.dtype,
        left_TR.data_ptr(),
        left_TR.stride(0),
        left_TR.shape[1],
        right_TO.data_ptr(),
        right_TO.stride(0),
        right_TO.shape[1],
        len(left_TR),
        factor,
        out_RO.data_ptr(),
        torch.get_num_threads(),
    )
    return out_RO


def _term_of(term: Term) -> Any:
    left_TK, right, along = term
    assert isinstance(right, torch.Tensor)
    return _Term(
        left_TK.data_ptr(), left_TK.stride(0), right.data_ptr(), right.stride(0), left_TK.shape[1], along
    )
