"""Where the compiled kernels are tried: on a GPU, else by Triton's interpreter on the processor."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Let every kernel of `elementwise`, `loss` and `dropout` be the compiled one; return the device."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        from llamafarm.kernels.gpu.choice import why_not_compiled

        assert why_not_compiled("cuda") is None
        return torch.device("cuda")
    if os.environ.get("TRITON_INTERPRET") != "1":  # looked at when Triton is loaded, whoever loads it
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1")
    for owner in ("compiled", "dropout"):
        monkeypatch.setattr(f"llamafarm.kernels.{owner}.room_of", lambda _: "gpu")
    return torch.device("cpu")
