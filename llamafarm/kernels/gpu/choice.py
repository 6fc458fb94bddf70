"""Whether the kernels of this room are used on a device: where Triton compiles, and gives what torch does."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch


def is_compiled(tensor: torch.Tensor) -> bool:
    """Return whether compiled kernels take this tensor."""
    return tensor.device.type == "cuda" and why_not_compiled("cuda") is None


@cache
@torch.inference_mode(False)
@torch.enable_grad()
def why_not_compiled(device_kind: str) -> str | None:
    """Return why kernels are not compiled on a kind of device; None where they are."""
    if device_kind != "cuda":
        return "only for CUDA and ROCm"
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        is_right = _is_as_the_twin(torch.device(device_kind))
    except Exception as error:  # a compiler that is missing, a GPU that is too old: Triton has many ways
        return f"Triton cannot compile here: {next(iter(str(error).splitlines()), type(error).__name__)}"
    return None if is_right else "a trial gave other numbers than torch"


def _is_as_the_twin(device: torch.device) -> bool:
    """Return whether one kernel, forward and gradient, gives what its plain twin does."""
    from llamafarm.kernels.gpu import elementwise
    from llamafarm.kernels.reference import normalize  # which stands on kernels that ask here

    hidden_TD = torch.linspace(-2, 3, 96, device=device).view(6, 16).requires_grad_()
    weight_D = torch.linspace(0.5, 1.5, 16, device=device)
    outer_TD = torch.linspace(1, -1, 96, device=device).view(6, 16)
    expected_TD = normalize(hidden_TD, weight_D, 1e-5)
    (d_expected_TD,) = torch.autograd.grad(expected_TD, hidden_TD, outer_TD)
    with torch.no_grad():
        normed_TD, inverse_T = elementwise.normalize(hidden_TD, weight_D, 1e-5)
        d_hidden_TD = elementwise.normalize_backward(outer_TD, hidden_TD, weight_D, inverse_T)
    return torch.allclose(normed_TD, expected_TD, atol=1e-5) and torch.allclose(
        d_hidden_TD, d_expected_TD, atol=1e-5
    )
