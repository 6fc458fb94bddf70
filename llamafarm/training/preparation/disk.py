"""The disk space that a run takes, from its plan and the strategy's exports."""

from __future__ import annotations

import shutil

from llamafarm.errors import MachineError
from llamafarm.planning.duration import DiskPlan, plan_disk
from llamafarm.strategy.schema import Strategy
from llamafarm.training.preparation.prepare import Preparation


def plan_disk_of(preparation: Preparation, strategy: Strategy) -> DiskPlan:
    """Return what a prepared run leaves on disk at most, without what is downloaded for it."""
    args, export, plan = strategy.training_args, strategy.export, preparation.plan
    num_kept = 0
    if plan.save_every is not None:
        every = plan.save_every.num_steps or plan.steps_per_epoch
        # One more lies there while it is being written, before an old one is removed.
        num_kept = min(-(-plan.num_steps // every), args.save_total_limit + 1)
    return plan_disk(
        preparation.memory.cut.request,
        num_checkpoints=num_kept + (1 if plan.saves_best else 0),
        quantization=export.quantization if export.to_gguf or export.to_ollama else None,
    )


def refuse_what_has_no_room(preparation: Preparation, strategy: Strategy) -> None:
    """Raise `MachineError` for a run that leaves more than its disk has room for."""
    needed = plan_disk_of(preparation, strategy).total_bytes
    folder = preparation.output_dir.absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise MachineError(
            f"the run leaves {needed / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free",
            where=str(existing),
            remedy="Make room, choose another training_args.output_dir, or lower save_total_limit.",
        )
