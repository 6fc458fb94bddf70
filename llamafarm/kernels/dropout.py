"""Dropout that does not depend on how rows are grouped.

What is dropped follows from the seed, the step, the row and the layer alone, so that packs of another size,
or a resumed run, drop the very same elements.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from llamafarm.errors import ModelError
from llamafarm.kernels.compiled import room_of


class DropoutPlan:
    """What all dropout layers of a model are told before each pack: the step and the documents in it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.step = 0
        self.row_indices: tuple[int, ...] = ()
        self.document_lengths: tuple[int, ...] = ()
        self.supervised_positions_S: torch.Tensor | None = None

    def enter_pack(
        self,
        step: int,
        row_indices: Sequence[int],
        document_lengths: Sequence[int],
        supervised_positions_S: torch.Tensor | None = None,
    ) -> None:
        """Say which step, and which rows of which lengths, the next forward pass is of."""
        self.supervised_positions_S = supervised_positions_S
        self.step = step
        self.row_indices = tuple(row_indices)
        self.document_lengths = tuple(document_lengths)


@dataclass(frozen=True, slots=True)
class RowMask:
    """Which elements of one layer's input are kept in one pack: drawn anew, and the same, at every call."""

    layer_name: str
    num_kept_of_65536: int
    seed: int
    step: int
    row_indices: tuple[int, ...]
    document_lengths: tuple[int, ...]
    supervised_positions_S: torch.Tensor | None

    @property
    def scale(self) -> float:
        """Return what kept elements are multiplied with, so that the mean stays what it was."""
        return 65536 / self.num_kept_of_65536

    def draw(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Return a bool tensor of the shape of `hidden_TD`, (T, D) or (1, T, D): whether to keep an element.

        Raises `ModelError` for a layer that sees neither all tokens nor the supervised ones, as experts do.
        """
        num_tokens = hidden_TD.shape[-2]
        mask_TD = self._draw_on_gpu(hidden_TD) if room_of(hidden_TD) == "gpu" else self._draw(hidden_TD)
        if num_tokens != len(mask_TD) and self.supervised_positions_S is not None:
            mask_TD = mask_TD[self.supervised_positions_S]  # the output layer sees no others
        if num_tokens != len(mask_TD):
            raise ModelError(
                f"{self.layer_name} sees {num_tokens} tokens of a pack that has another number of them",
                where="method.dropout",
                remedy="Write dropout: 0, or leave this layer out of target_modules.",
            )
        return mask_TD.view(hidden_TD.shape)

    def _draw_on_gpu(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Return the mask of the whole pack (T, D), by one kernel."""
        from llamafarm.kernels.gpu.dropout import draw_mask

        keys_T2, places_T = _keys_and_places(
            self.seed, self.step, self.row_indices, self.document_lengths, hidden_TD.device
        )
        return draw_mask(
            keys_T2, places_T, _key_of(self.layer_name), self.num_kept_of_65536, hidden_TD.shape[-1]
        )

    def _draw(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Return the mask of the whole pack (T, D), row by row."""
        width = hidden_TD.shape[-1]
        num_elements = [length * width for length in self.document_lengths]
        # One draw of 64 bits decides four elements: a draw for each cost 30 % of a step. One comparison for
        # the pack: each is a meeting of threads, which takes milliseconds where others want the cores.
        num_draws = [-(-count // 4) for count in num_elements]
        draws = torch.empty(sum(num_draws), dtype=torch.int64, device=hidden_TD.device)
        for row_index, of_row in zip(self.row_indices, torch.split(draws, num_draws), strict=True):
            of_row.random_(-(2**63), None, generator=self._generator(row_index, draws.device))
        is_kept = draws.view(torch.int16) < self.num_kept_of_65536 - 32768
        if width % 4:
            rows = torch.split(is_kept, [4 * count for count in num_draws])
            is_kept = torch.cat([row[:count] for row, count in zip(rows, num_elements, strict=True)])
        return is_kept.view(-1, width)

    def _generator(self, row_index: int, device: torch.device) -> torch.Generator:
        seed = _key_of(self.seed, self.step, row_index, self.layer_name)
        return torch.Generator(device=device).manual_seed(seed)


def _key_of(*parts: int | str) -> int:
    """Return a key of 63 bits."""
    # repr keeps the parts apart; a hash spreads them over the keys.
    written = repr(parts if len(parts) > 1 else parts[0]).encode()
    return int.from_bytes(hashlib.blake2b(written, digest_size=8).digest(), "little") >> 1


# All layers of a pack ask, forward and backward: what was brought to the device for the first serves all.
@lru_cache(maxsize=4)
def _keys_and_places(
    seed: int, step: int, row_indices: tuple[int, ...], lengths: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the key of each token's row (T, 2) and the token's place in it (T,), as int32."""
    keys_N = np.array([_key_of(seed, step, index) for index in row_indices], dtype=np.int64)
    keys_T2 = torch.from_numpy(np.repeat(keys_N, lengths).view(np.int32).reshape(-1, 2))
    places_T = torch.from_numpy(np.concatenate([np.arange(one, dtype=np.int32) for one in lengths]))
    return keys_T2.to(device), places_T.to(device)


class RowDropout(nn.Module):
    """Dropout over a pack, each document's mask drawn for its row. Input axes: (1, T, D) or (T, D)."""

    def __init__(self, probability: float, layer_name: str, plan: DropoutPlan) -> None:
        super().__init__()
        self.p = probability
        self._layer_name = layer_name
        self._plan = plan

    def mask(self) -> RowMask | None:
        """Return the mask for the pack that the plan is at; None where nothing is dropped."""
        if not self.training or self.p == 0.0:
            return None
        plan = self._plan
        return RowMask(
            self._layer_name,
            # Chances are counted in 65,536ths, and the scale follows the count.
            min(max(round((1.0 - self.p) * 65536), 1), 65536),
            plan.seed,
            plan.step,
            plan.row_indices,
            plan.document_lengths,
            plan.supervised_positions_S,
        )

    def forward(self, hidden_1TD: torch.Tensor) -> torch.Tensor:
        """Zero elements with probability p and scale the others by 1 / (1 - p); nothing in evaluation.

        Raises `ModelError` as `RowMask.draw` does.
        """
        mask = self.mask()
        return hidden_1TD if mask is None else hidden_1TD * mask.draw(hidden_1TD) * mask.scale
