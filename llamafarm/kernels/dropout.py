"""Dropout that does not depend on how rows are grouped.

What is dropped follows from the seed, the step, the row and the layer alone, so that packs of another size,
or a resumed run, drop the very same elements.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from llamafarm.errors import ModelError


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


class RowDropout(nn.Module):
    """Dropout over a pack, each document's mask drawn for its row. Input axes: (1, T, D) or (T, D)."""

    def __init__(self, probability: float, layer_name: str, plan: DropoutPlan) -> None:
        super().__init__()
        self.p = probability
        self._layer_name = layer_name
        self._plan = plan

    def forward(self, hidden_1TD: torch.Tensor) -> torch.Tensor:
        """Zero elements with probability p and scale the others by 1 / (1 - p); nothing in evaluation.

        Raises `ModelError` for a layer that sees neither all tokens nor the supervised ones, as experts do.
        """
        if not self.training or self.p == 0.0:
            return hidden_1TD
        num_tokens = hidden_1TD.shape[-2]
        # Chances are counted in 65,536ths, and the scale follows the count: the mean stays what it was.
        num_kept = min(max(round((1.0 - self.p) * 65536), 1), 65536)
        masks = [
            self._draw_kept(row_index, length * hidden_1TD.shape[-1], num_kept, hidden_1TD.device)
            for row_index, length in zip(self._plan.row_indices, self._plan.document_lengths, strict=True)
        ]
        mask_TD = torch.cat(masks).view(-1, hidden_1TD.shape[-1])
        if num_tokens != len(mask_TD) and self._plan.supervised_positions_S is not None:
            mask_TD = mask_TD[self._plan.supervised_positions_S]  # the output layer sees no others
        if num_tokens != len(mask_TD):
            raise ModelError(
                f"{self._layer_name} sees {num_tokens} tokens of a pack that has another number of them",
                where="method.dropout",
                remedy="Write dropout: 0, or leave this layer out of target_modules.",
            )
        return hidden_1TD * mask_TD.view(hidden_1TD.shape) * (65536 / num_kept)

    def _draw_kept(
        self, row_index: int, num_elements: int, num_kept: int, device: torch.device
    ) -> torch.Tensor:
        # One draw of 64 bits decides four elements: a draw for each cost 30 % of a step.
        draws = torch.empty((num_elements + 3) // 4, dtype=torch.int64, device=device)
        draws.random_(-(2**63), None, generator=self._generator(row_index, device))
        return draws.view(torch.int16)[:num_elements] < num_kept - 32768

    def _generator(self, row_index: int, device: torch.device) -> torch.Generator:
        # repr keeps the parts apart; a hash spreads them over the seeds of the generator.
        parts = repr((self._plan.seed, self._plan.step, row_index, self._layer_name)).encode()
        seed = int.from_bytes(hashlib.blake2b(parts, digest_size=8).digest(), "little") >> 1
        return torch.Generator(device=device).manual_seed(seed)
