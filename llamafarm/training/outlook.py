"""What a prepared run will take, before it starts: packs, operations, time, disk. `plan` shows it."""

from __future__ import annotations

from dataclasses import dataclass

from llamafarm.data.encoding.pack import pack_rows
from llamafarm.data.encoding.rows import EncodedRows
from llamafarm.hardware.speed import measure_peak_flops
from llamafarm.planning.duration import (
    EFFICIENCY,
    DiskPlan,
    RowLengths,
    estimate_seconds,
    evaluation_flops,
    training_flops,
)
from llamafarm.strategy.schema import Strategy
from llamafarm.training.loop import LoopPlan
from llamafarm.training.preparation.disk import plan_disk_of
from llamafarm.training.preparation.prepare import Preparation
from llamafarm.training.probe import ProbeResult


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a run will take. Seconds are of training and evaluation, without loading and saving.

    `time_basis` says what the seconds rest on.
    """

    packs_of_first_step: int
    tokens_per_epoch: int
    flops: float
    seconds: float
    time_basis: str
    disk: DiskPlan


def look_ahead(preparation: Preparation, strategy: Strategy, probe: ProbeResult | None = None) -> Outlook:
    """Return what a prepared run will take; a probe's speed is taken over that of matrix products."""
    plan, request = preparation.plan, preparation.memory.cut.request
    lengths = sum_lengths(preparation.train_rows)
    num_epochs = plan.num_steps / plan.steps_per_epoch
    evaluation = evaluation_flops(request, sum_lengths(preparation.eval_rows))
    flops = num_epochs * training_flops(request, lengths) + _num_evaluations(plan) * evaluation
    if probe is not None:
        seconds, basis = flops / probe.flops_per_second, f"a probe of {probe.num_steps} steps"
    else:
        speed = measure_peak_flops(preparation.device.kind, preparation.precision.name)
        efficiency = EFFICIENCY[preparation.device.kind]
        seconds = estimate_seconds(flops, speed, efficiency)
        basis = f"{efficiency:.0%} of the {speed / 1e9:,.0f} GFLOP/s of a matrix product"
    memory = preparation.memory
    first = pack_rows(
        preparation.train_rows,
        plan.rows_of_step(1),
        memory.pack_tokens,
        shares_prefixes=memory.shares_prefixes,
    )
    return Outlook(len(first), lengths.num_tokens, flops, seconds, basis, plan_disk_of(preparation, strategy))


def sum_lengths(rows: EncodedRows) -> RowLengths:
    """Return the summed lengths of rows."""
    return RowLengths.of(rows.lengths_N, rows.num_supervised_N)


def _num_evaluations(plan: LoopPlan) -> int:
    """Return how often a run evaluates if nothing stops it early; the last step always does."""
    if plan.evaluate_every is None:
        return 0
    every = plan.evaluate_every.num_steps or plan.steps_per_epoch
    return -(-plan.num_steps // every)
