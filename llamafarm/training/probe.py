"""A few real steps of a run, to see what was predicted: their memory and their speed. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from llamafarm.data.encoding.pack import Pack, Packs, pack_rows
from llamafarm.hardware.device import peak_memory_bytes
from llamafarm.hardware.process import return_freed_memory
from llamafarm.kernels.dropout import DropoutPlan
from llamafarm.model.forward import PackedForward, packed_forward
from llamafarm.model.weights import transformer_of
from llamafarm.planning.duration import RowLengths, training_flops
from llamafarm.strategy.schema import Strategy
from llamafarm.training.methods import open_for_training
from llamafarm.training.optimizer import build_optimizer, optimizer_settings
from llamafarm.training.preparation.prepare import Preparation
from llamafarm.training.run import precision_of
from llamafarm.training.step import run_step

_NUM_STEPS = 3
# Steps among which the one with the fullest pack is looked for.
_NUM_LOOKED_AT = 32


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the steps of a probe took; speed is that of all but the first, which warms up."""

    num_steps: int
    tokens_per_second: float
    flops_per_second: float
    peak_memory_bytes: int


def probe_steps(preparation: Preparation, strategy: Strategy) -> ProbeResult:
    """Load the model, take a few steps, the one with the fullest pack among them, and let it go."""
    if preparation.memory.returns_freed_memory:
        return_freed_memory()
    model, dropout_plan = open_for_training(preparation, strategy)
    precision = precision_of(preparation, model)
    optimizer, _ = build_optimizer(
        model, optimizer_settings(strategy.training_args, preparation.method), preparation.plan.num_steps
    )
    device = torch.device(preparation.device.kind)
    num_tokens, flops, seconds = 0, 0.0, 0.0
    steps = _choose_steps(preparation)
    model.train()
    with packed_forward(transformer_of(model), fuses=precision.is_native) as packed:
        for place, step in enumerate(steps):
            indices = preparation.plan.rows_of_step(step)
            packs = [pack.to(device) for pack in _packs_of(preparation, indices)]
            started = time.perf_counter()
            run_step(
                partial(_sum_loss, packed, dropout_plan, step),
                packs,
                optimizer,
                precision,
                max_grad_norm=strategy.training_args.max_grad_norm,
                where=f"step {step} of a probe",
            )
            if place or len(steps) == 1:
                seconds += time.perf_counter() - started
                num_tokens += sum(pack.num_row_tokens for pack in packs)
                flops += training_flops(preparation.memory.cut.request, lengths_of(preparation, indices))
    return ProbeResult(
        len(steps), num_tokens / seconds, flops / seconds, peak_memory_bytes(preparation.device.kind)
    )


def lengths_of(preparation: Preparation, indices: Sequence[int]) -> RowLengths:
    """Return the summed lengths of some training rows."""
    rows = preparation.train_rows.select(np.asarray(indices))
    return RowLengths.of(rows.lengths_N, rows.num_supervised_N)


def _choose_steps(preparation: Preparation) -> list[int]:
    """Return the first steps, and that with the fullest pack last."""
    steps = range(1, min(preparation.plan.num_steps, _NUM_LOOKED_AT) + 1)
    fullest = max(steps, key=lambda step: _fullness(preparation, step))
    others = [step for step in steps if step != fullest]
    return [*others[: _NUM_STEPS - 1], fullest]


def _fullness(preparation: Preparation, step: int) -> int:
    packs = _packs_of(preparation, preparation.plan.rows_of_step(step))
    return max(num_tokens + num_supervised for num_tokens, num_supervised, _ in packs.sizes())


def _packs_of(preparation: Preparation, indices: Sequence[int]) -> Packs:
    memory = preparation.memory
    return pack_rows(
        preparation.train_rows, indices, memory.pack_tokens, shares_prefixes=memory.shares_prefixes
    )


def _sum_loss(packed: PackedForward, dropout_plan: DropoutPlan, step: int, pack: Pack) -> torch.Tensor:
    dropout_plan.enter_pack(step, pack.row_indices, pack.document_lengths, pack.supervised_positions_S)
    return packed.sum_loss(pack)
