"""Masks of dropout on a GPU: one kernel for a pack, whatever the number of its rows.

Each element's chance is a number of Philox (Salmon et al., 2011), a generator without state: from a key and
a place it gives the number at once. Axes: T tokens, D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_PHILOX_CALLS = 512


def draw_mask(
    keys_T2: torch.Tensor, places_T: torch.Tensor, layer_key: int, num_kept_of_65536: int, width: int
) -> torch.Tensor:
    """Return a bool tensor (T, D) of the elements that are kept.

    `keys_T2` (int32) has the key of each token's row, `places_T` (int32) its place in the row; `layer_key`
    is of 63 bits.
    """
    mask_TD = torch.empty(len(places_T), width, dtype=torch.bool, device=places_T.device)
    # A call of the generator gives 128 bits: 16 for each of eight elements.
    grid = (len(places_T), triton.cdiv(width, 8 * _PHILOX_CALLS))
    _draw_mask[grid](keys_T2, places_T, mask_TD, layer_key, num_kept_of_65536, width, CALLS=_PHILOX_CALLS)
    return mask_TD


@triton.jit
def _draw_mask(keys, places, mask, layer_key, num_kept, width, CALLS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    call = tl.program_id(1) * CALLS + tl.arange(0, CALLS)
    place = tl.load(places + token) + 0 * call
    low = tl.load(keys + 2 * token) + 0 * call
    high = tl.load(keys + 2 * token + 1) + 0 * call
    one, two, three, four = tl.philox(layer_key, call, place, low, high)
    words = tl.interleave(tl.interleave(one, three), tl.interleave(two, four))
    halves = tl.interleave(words & 0xFFFF, words >> 16).to(tl.int32)
    column = tl.program_id(1) * 8 * CALLS + tl.arange(0, 8 * CALLS)
    tl.store(mask + token * width + column, halves < num_kept, mask=column < width)
