"""Norms, rotary positions and the gate on a processor, forward and gradient; contracts as in `gpu`.

Axes: T tokens, R rows of whatever axes, D the size of what is normed or of a head, N heads, I the
feed-forward width.
"""

from __future__ import annotations

import ctypes

import torch

from llamafarm.kernels.cpu.library import call


def normalize(
    hidden_TD: torch.Tensor, weight_D: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the RMS norm over the last axis, and 1 / sqrt(mean(x²) + epsilon) of each row, in fp32."""
    rows_RD, weight_D = _rows(hidden_TD), weight_D.contiguous()
    normed_RD = torch.empty(rows_RD.shape, dtype=rows_RD.dtype)
    inverse_R = torch.empty(len(rows_RD), dtype=torch.float32)
    call(
        "normalize",
        rows_RD.dtype,
        rows_RD.data_ptr(),
        weight_D.data_ptr(),
        normed_RD.data_ptr(),
        inverse_R.data_ptr(),
        *rows_RD.shape,
        rows_RD.stride(0),
        epsilon,
        torch.get_num_threads(),
    )
    return normed_RD.view(hidden_TD.shape), inverse_R


def normalize_backward(
    d_normed_TD: torch.Tensor, hidden_TD: torch.Tensor, weight_D: torch.Tensor, inverse_R: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of the input of `normalize`."""
    rows_RD, d_normed_RD = _rows(hidden_TD), _rows(d_normed_TD)
    weight_D = weight_D.contiguous()
    d_rows_RD = torch.empty(rows_RD.shape, dtype=rows_RD.dtype)
    call(
        "normalize_backward",
        rows_RD.dtype,
        d_normed_RD.data_ptr(),
        rows_RD.data_ptr(),
        weight_D.data_ptr(),
        inverse_R.data_ptr(),
        d_rows_RD.data_ptr(),
        *rows_RD.shape,
        d_normed_RD.stride(0),
        rows_RD.stride(0),
        torch.get_num_threads(),
    )
    return d_rows_RD.view(hidden_TD.shape)


def rotate(
    heads_TND: torch.Tensor, cosine_TE: torch.Tensor, sine_TE: torch.Tensor, sign: int
) -> torch.Tensor:
    """Return heads turned by their angles, or with `sign` -1 back; the result is token by token in memory."""
    num_tokens, num_heads, size = heads_TND.shape
    heads_TND = heads_TND if heads_TND.stride(2) == 1 else heads_TND.contiguous()
    cosine_TE, sine_TE = (_rows(table.to(heads_TND.dtype)) for table in (cosine_TE, sine_TE))
    rotated_TND = torch.empty(heads_TND.shape, dtype=heads_TND.dtype)
    strides = (ctypes.c_int64 * 4)(*heads_TND.stride()[:2], cosine_TE.stride(0), sine_TE.stride(0))
    call(
        "rotate",
        heads_TND.dtype,
        heads_TND.data_ptr(),
        cosine_TE.data_ptr(),
        sine_TE.data_ptr(),
        rotated_TND.data_ptr(),
        num_tokens,
        num_heads,
        size,
        cosine_TE.shape[-1] // 2,
        strides,
        sign,
        torch.get_num_threads(),
    )
    return rotated_TND


def gate(gate_TI: torch.Tensor, up_TI: torch.Tensor, activation: str) -> torch.Tensor:
    """Return activation(gate) * up."""
    shape, gate_TI, up_TI = gate_TI.shape, _rows(gate_TI), _rows(up_TI.to(gate_TI.dtype))
    gated_TI = torch.empty(gate_TI.shape, dtype=gate_TI.dtype)
    call(
        "gate",
        gate_TI.dtype,
        gate_TI.data_ptr(),
        up_TI.data_ptr(),
        gated_TI.data_ptr(),
        *gate_TI.shape,
        gate_TI.stride(0),
        up_TI.stride(0),
        torch.get_num_threads(),
        variant=activation,
    )
    return gated_TI.view(shape)


def gate_backward(
    d_gated_TI: torch.Tensor, gate_TI: torch.Tensor, up_TI: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of both inputs of `gate`."""
    shape = gate_TI.shape
    d_gated_TI, gate_TI, up_TI = (_rows(one.to(gate_TI.dtype)) for one in (d_gated_TI, gate_TI, up_TI))
    d_gate_TI, d_up_TI = (torch.empty(gate_TI.shape, dtype=gate_TI.dtype) for _ in range(2))
    call(
        "gate_backward",
        gate_TI.dtype,
        d_gated_TI.data_ptr(),
        gate_TI.data_ptr(),
        up_TI.data_ptr(),
        d_gate_TI.data_ptr(),
        d_up_TI.data_ptr(),
        *gate_TI.shape,
        d_gated_TI.stride(0),
        gate_TI.stride(0),
        up_TI.stride(0),
        torch.get_num_threads(),
        variant=activation,
    )
    return d_gate_TI.view(shape), d_up_TI.view(shape)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as rows of its last axis, whose elements lie side by side."""
    rows_RD = tensor.reshape(-1, tensor.shape[-1])
    return rows_RD if rows_RD.stride(1) == 1 else rows_RD.contiguous()
