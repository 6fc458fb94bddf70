"""Loss and perplexity over the supervised tokens of packs, of each row by itself. Axes: N, rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from llamafarm.data.encoding.pack import Pack
from llamafarm.model.forward import PackedForward

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LossResult:
    """The mean loss in nats per supervised token, and how many there were."""

    loss: float
    num_supervised_tokens: int

    @property
    def perplexity(self) -> float:
        """Return exp(loss): how many tokens the model hesitates between; infinite where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Of each row the summed loss in nats, and its supervised tokens; 0 for rows that were not measured."""

    loss_sum_N: NDArray[np.float64]
    num_tokens_N: NDArray[np.int64]

    @property
    def total(self) -> LossResult:
        """Return the loss per token of all rows together."""
        num_tokens = int(self.num_tokens_N.sum())
        return LossResult(float(self.loss_sum_N.sum()) / max(num_tokens, 1), num_tokens)

    @property
    def per_row(self) -> float:
        """Return the mean of the rows' own losses per token: each row counts as much as another."""
        is_measured_N = self.num_tokens_N > 0
        if not is_measured_N.any():
            return 0.0
        return float((self.loss_sum_N[is_measured_N] / self.num_tokens_N[is_measured_N]).mean())

    def grouped(self, group_of_N: Sequence[int], num_groups: int) -> RowLosses:
        """Return the losses of groups of rows, such as those that one conversation became."""
        groups = np.asarray(group_of_N, np.int64)
        return RowLosses(
            np.bincount(groups, self.loss_sum_N, num_groups).astype(np.float64),
            np.bincount(groups, self.num_tokens_N, num_groups).astype(np.int64),
        )


@contextmanager
def training_mode_kept(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode meanwhile."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def measure_losses(
    packed: PackedForward,
    packs: Sequence[Pack],
    num_rows: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    *,
    before_pack: Callable[[], None] = lambda: None,
) -> RowLosses:
    """Return a model's losses on the rows in `packs`, of `num_rows` that there are.

    The model is in training mode afterwards if it was before, also where `before_pack` raises.
    """
    model = packed.model
    loss_sum_N, num_tokens_N = np.zeros(num_rows), np.zeros(num_rows, np.int64)
    with training_mode_kept(model), torch.inference_mode(), autocast():
        for pack in packs:
            before_pack()
            if pack.num_supervised_tokens:
                # mps has no doubles.
                losses_S = packed.token_losses(pack.to(device)).cpu().double().numpy()
                rows_S = pack.target_rows
                loss_sum_N += np.bincount(rows_S, losses_S, num_rows)
                num_tokens_N += np.bincount(rows_S, minlength=num_rows)
    return RowLosses(loss_sum_N, num_tokens_N)
