"""Whether the kernels of this room are used: where a compiler is, and they give what torch does."""

from __future__ import annotations

from functools import cache

import torch

from llamafarm.kernels.cpu.build import BuildError


def is_compiled(tensor: torch.Tensor) -> bool:
    """Return whether compiled kernels take this tensor."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and why_not_compiled() is None
    )


@cache
@torch.inference_mode(False)
@torch.no_grad()
def why_not_compiled() -> str | None:
    """Return why kernels are not compiled for this processor; None where they are."""
    try:
        is_right = _is_as_torch()
    except (BuildError, OSError) as error:
        return str(error)
    return None if is_right else "a trial gave other numbers than torch"


def _is_as_torch() -> bool:
    """Return whether a norm and a gate give what torch does; attention is tried for the heads at hand."""
    from llamafarm.kernels.cpu import elementwise

    hidden_TD = torch.linspace(-2, 3, 6 * 37).view(6, 37)
    weight_D = torch.linspace(0.5, 1.5, 37)
    expected_TD = torch.nn.functional.rms_norm(hidden_TD, (37,), weight_D, 1e-5)
    normed_TD, _ = elementwise.normalize(hidden_TD, weight_D, 1e-5)
    gated_TD = elementwise.gate(hidden_TD, expected_TD, "silu")
    expected_gated_TD = torch.nn.functional.silu(hidden_TD) * expected_TD
    return torch.allclose(normed_TD, expected_TD, atol=1e-5) and torch.allclose(
        gated_TD, expected_gated_TD, atol=1e-5
    )
