"""Functions of numbers that Triton's language lacks."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """Return the hyperbolic tangent."""
    return 2 * tl.sigmoid(2 * x) - 1
