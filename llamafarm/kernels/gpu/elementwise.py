"""Norms, rotary positions and the gate on a GPU, forward and gradient; contracts are those of the plain ones.

Axes: T tokens, R rows of whatever axes, D the size of what is normed or of a head, N heads, I the
feed-forward width.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from llamafarm.kernels.gpu.math import tanh

# Elements that a program holds at once.
_TILE = 4096


def normalize(
    hidden_TD: torch.Tensor, weight_D: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the RMS norm over the last axis, and 1 / sqrt(mean(x²) + epsilon) of each row, in fp32."""
    rows_RD = hidden_TD.reshape(-1, hidden_TD.shape[-1])
    normed_RD = torch.empty_like(rows_RD)
    inverse_R = torch.empty(len(rows_RD), dtype=torch.float32, device=rows_RD.device)
    grid, options = _over_rows(rows_RD)
    _normalize[grid](
        rows_RD, weight_D, normed_RD, inverse_R, *rows_RD.shape, rows_RD.stride(0), epsilon, **options
    )
    return normed_RD.view(hidden_TD.shape), inverse_R


def normalize_backward(
    d_normed_TD: torch.Tensor, hidden_TD: torch.Tensor, weight_D: torch.Tensor, inverse_R: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of the input of `normalize`."""
    rows_RD = hidden_TD.reshape(-1, hidden_TD.shape[-1])
    d_normed_RD = d_normed_TD.reshape(rows_RD.shape)
    d_rows_RD = torch.empty_like(rows_RD)
    grid, options = _over_rows(rows_RD)
    strides = (rows_RD.stride(0), d_normed_RD.stride(0))
    _normalize_backward[grid](
        d_normed_RD, rows_RD, weight_D, inverse_R, d_rows_RD, *rows_RD.shape, *strides, **options
    )
    return d_rows_RD.view(hidden_TD.shape)


def rotate(
    heads_TND: torch.Tensor, cosine_TE: torch.Tensor, sine_TE: torch.Tensor, sign: int
) -> torch.Tensor:
    """Return heads turned by their angles, or with `sign` -1 back; the result is token by token in memory."""
    num_tokens, num_heads, size = heads_TND.shape
    if heads_TND.stride(2) != 1:
        heads_TND = heads_TND.contiguous()
    cosine_TE, sine_TE = cosine_TE.contiguous(), sine_TE.contiguous()
    rotated_TND = torch.empty(heads_TND.shape, dtype=heads_TND.dtype, device=heads_TND.device)
    half = cosine_TE.shape[-1] // 2
    block = triton.next_power_of_2(half)
    block_rest = triton.next_power_of_2(max(size - 2 * half, 1))
    block_heads = min(triton.next_power_of_2(num_heads), max(_TILE // (2 * block), 1))
    _rotate[(num_tokens, triton.cdiv(num_heads, block_heads))](
        heads_TND,
        cosine_TE,
        sine_TE,
        rotated_TND,
        num_heads,
        half,
        size,
        *heads_TND.stride()[:2],
        cosine_TE.stride(0),
        sine_TE.stride(0),
        SIGN=sign,
        HEADS=block_heads,
        HALF=block,
        REST=block_rest if size > 2 * half else 0,
    )
    return rotated_TND


def gate(gate_TI: torch.Tensor, up_TI: torch.Tensor, activation: str) -> torch.Tensor:
    """Return activation(gate) * up."""
    gated_TI = torch.empty(gate_TI.shape, dtype=gate_TI.dtype, device=gate_TI.device)
    num_tokens, width = gate_TI.shape
    _gate[_over_tiles(num_tokens, width)](
        gate_TI, up_TI, gated_TI, width, gate_TI.stride(0), up_TI.stride(0), NAME=activation, BLOCK=_TILE
    )
    return gated_TI


def gate_backward(
    d_gated_TI: torch.Tensor, gate_TI: torch.Tensor, up_TI: torch.Tensor, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of both inputs of `gate`."""
    num_tokens, width = gate_TI.shape
    d_gated_TI = d_gated_TI.contiguous()
    d_gate_TI, d_up_TI = (torch.empty_like(d_gated_TI) for _ in range(2))
    _gate_backward[_over_tiles(num_tokens, width)](
        d_gated_TI,
        gate_TI,
        up_TI,
        d_gate_TI,
        d_up_TI,
        width,
        gate_TI.stride(0),
        up_TI.stride(0),
        NAME=activation,
        BLOCK=_TILE,
    )
    return d_gate_TI, d_up_TI


def _over_rows(rows_RD: torch.Tensor) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return the grid and the options of a kernel of which each program has some whole rows."""
    num_rows, width = rows_RD.shape
    block = triton.next_power_of_2(width)
    rows = max(_TILE // (2 * block), 1)
    return (triton.cdiv(num_rows, rows),), {
        "ROWS": rows,
        "BLOCK": block,
        "num_warps": 8 if block > 2048 else 4,
    }


def _over_tiles(num_tokens: int, width: int) -> tuple[int, int]:
    return num_tokens, triton.cdiv(width, _TILE)


@triton.jit
def _normalize(
    rows, weight, normed, inverse, num_rows, width, stride, epsilon, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    is_there = (place < num_rows)[:, None] & (column < width)[None, :]
    wide = tl.load(
        rows + place.to(tl.int64)[:, None] * stride + column[None, :], mask=is_there, other=0.0
    ).to(tl.float32)
    scale = tl.load(weight + column, mask=column < width, other=0.0)
    by = 1 / tl.sqrt(tl.sum(wide * wide, axis=1) / width + epsilon)
    result = wide * by[:, None] * scale[None, :]
    tl.store(normed + place.to(tl.int64)[:, None] * width + column[None, :], result, mask=is_there)
    tl.store(inverse + place, by, mask=place < num_rows)


@triton.jit
def _normalize_backward(
    d_normed,
    rows,
    weight,
    inverse,
    d_rows,
    num_rows,
    width,
    stride,
    d_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    is_there = (place < num_rows)[:, None] & (column < width)[None, :]
    where = place.to(tl.int64)[:, None]
    wide = tl.load(rows + where * stride + column[None, :], mask=is_there, other=0.0).to(tl.float32)
    outer = tl.load(d_normed + where * d_stride + column[None, :], mask=is_there, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, mask=column < width, other=0.0)
    by = tl.load(inverse + place, mask=place < num_rows, other=0.0)[:, None]
    scaled = wide * by
    d_scaled = outer * scale[None, :]
    along = tl.sum(d_scaled * scaled, axis=1)[:, None] / width
    tl.store(d_rows + where * width + column[None, :], (d_scaled - scaled * along) * by, mask=is_there)


@triton.jit
def _rotate(
    heads,
    cosine,
    sine,
    rotated,
    num_heads,
    half,
    size,
    token_stride,
    head_stride,
    cosine_stride,
    sine_stride,
    SIGN: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    is_angle = column < half
    is_there = (head < num_heads) & is_angle
    by_cosine = tl.load(cosine + token * cosine_stride + column, mask=is_angle, other=0.0).to(tl.float32)
    by_sine = SIGN * tl.load(sine + token * sine_stride + column, mask=is_angle, other=0.0).to(tl.float32)
    source = heads + token * token_stride + head * head_stride
    target = rotated + (token * num_heads + head) * size
    first = tl.load(source + column, mask=is_there, other=0.0).to(tl.float32)
    second = tl.load(source + half + column, mask=is_there, other=0.0).to(tl.float32)
    tl.store(target + column, first * by_cosine - second * by_sine, mask=is_there)
    tl.store(target + half + column, second * by_cosine + first * by_sine, mask=is_there)
    if REST:
        rest = 2 * half + tl.arange(0, REST)[None, :]
        is_rest = (head < num_heads) & (rest < size)
        tl.store(target + rest, tl.load(source + rest, mask=is_rest), mask=is_rest)


@triton.jit
def _activate(x, NAME: tl.constexpr):
    """Return an activation and its slope."""
    if NAME == "silu":
        share = tl.sigmoid(x)
        activated = x * share
        slope = share * (1 + x * (1 - share))
    elif NAME == "gelu":
        share = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        activated = x * share
        slope = share + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    else:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        bent = tanh(inner)
        activated = 0.5 * x * (1 + bent)
        slope = 0.5 * (1 + bent) + 0.5 * x * (1 - bent * bent) * 0.7978845608028654 * (1 + 0.134145 * x * x)
    return activated, slope


@triton.jit
def _gate(gate, up, gated, width, gate_stride, up_stride, NAME: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_there = column < width
    raw = tl.load(gate + token * gate_stride + column, mask=is_there, other=0.0).to(tl.float32)
    value = tl.load(up + token * up_stride + column, mask=is_there, other=0.0).to(tl.float32)
    activated, _ = _activate(raw, NAME)
    tl.store(gated + token * width + column, activated * value, mask=is_there)


@triton.jit
def _gate_backward(
    d_gated, gate, up, d_gate, d_up, width, gate_stride, up_stride, NAME: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_there = column < width
    outer = tl.load(d_gated + token * width + column, mask=is_there, other=0.0).to(tl.float32)
    raw = tl.load(gate + token * gate_stride + column, mask=is_there, other=0.0).to(tl.float32)
    value = tl.load(up + token * up_stride + column, mask=is_there, other=0.0).to(tl.float32)
    activated, slope = _activate(raw, NAME)
    tl.store(d_gate + token * width + column, outer * value * slope, mask=is_there)
    tl.store(d_up + token * width + column, outer * activated, mask=is_there)
