"""A run in small, before hours are spent on it: everything that it will do, on its longest rows.

One step and its checkpoint; the model loaded anew, the checkpoint resumed, another step; an evaluation;
answers of base and tuned; the exports that the strategy asks for, or a merge. All of it in a temporary folder
that is gone afterwards. What would have failed at the last step fails here.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llamafarm import terminal
from llamafarm.deploy.convert import SAFETENSORS, ExportWishes, export
from llamafarm.strategy.load import LoadedStrategy
from llamafarm.training.checkpoint import checkpoint_folder
from llamafarm.training.export import export_run, wants_export
from llamafarm.training.loop import Every, LoopPlan
from llamafarm.training.outlook import Outlook, look_ahead
from llamafarm.training.preparation.disk import refuse_what_has_no_room
from llamafarm.training.preparation.memory import refuse_what_does_not_fit
from llamafarm.training.preparation.prepare import Preparation, prepare
from llamafarm.training.probe import ProbeResult
from llamafarm.training.record import CHECKPOINTS_FOLDER
from llamafarm.training.result import RunResult
from llamafarm.training.run import show_preparation, train_prepared

_NUM_STEPS = 2
_NUM_EVAL_ROWS, _NUM_ANSWERS = 8, 2


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a rehearsal found: how long each part took, and what the whole run will take by its figures."""

    seconds: dict[str, float]
    outlook: Outlook
    predicted_memory_bytes: int
    peak_memory_bytes: int


def rehearse(loaded: LoadedStrategy) -> Rehearsal:
    """Do all that a run will do, in small. Nothing stays. Raises what the run would have raised."""
    preparation = prepare(loaded)
    refuse_what_does_not_fit(preparation.memory)
    refuse_what_has_no_room(preparation, loaded.strategy)
    show_preparation(preparation)
    terminal.heading(f"rehearsing {_NUM_STEPS} steps on the longest rows")
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="llamafarm-rehearsal-") as name:
        folder, quietly = Path(name), _as_small(loaded)
        with _timed(seconds, "a step and its checkpoint"):
            _train(quietly, preparation, folder / "first", num_steps=1)
        checkpoint = checkpoint_folder(folder / "first" / CHECKPOINTS_FOLDER, 1)
        with _timed(seconds, "resumed, a step, answers"):
            result = _train(quietly, preparation, folder / "second", _NUM_STEPS, resume=str(checkpoint))
        with _timed(seconds, "export" if wants_export(loaded.strategy) else "merge"):
            _export(quietly, result, folder / "merged")
    return Rehearsal(
        seconds,
        look_ahead(preparation, loaded.strategy, _as_probe(result)),
        preparation.memory.plan.total_bytes,
        result.peak_memory_bytes,
    )


def _train(
    loaded: LoadedStrategy, preparation: Preparation, folder: Path, num_steps: int, resume: str = "never"
) -> RunResult:
    with _quietly():
        return train_prepared(loaded, _in_small(preparation, folder, num_steps), resume=resume)


def _in_small(preparation: Preparation, folder: Path, num_steps: int) -> Preparation:
    """Return a preparation of a few steps over the longest rows, into another folder."""
    plan, selection = preparation.plan, preparation.selection
    num_rows = min(_NUM_STEPS * plan.rows_per_step, len(selection.train_rows))
    longest = np.argsort(-selection.train_rows.lengths_N, kind="stable")
    evaluated = np.argsort(-selection.eval_rows.lengths_N, kind="stable")[:_NUM_EVAL_ROWS]
    return replace(
        preparation,
        output_dir=folder,
        plan=_plan_of(plan, num_rows, num_steps),
        selection=replace(
            selection,
            train_rows=selection.train_rows.select(longest[:num_rows]),
            eval_rows=selection.eval_rows.select(evaluated),
        ),
        choices=list(preparation.choices),
        warnings=[],
    )


def _plan_of(plan: LoopPlan, num_rows: int, num_steps: int) -> LoopPlan:
    has_evaluation = plan.evaluate_every is not None
    return replace(
        plan,
        num_rows=num_rows,
        num_epochs=float(_NUM_STEPS),
        max_steps=num_steps,
        shuffle=False,
        evaluate_every=Every(_NUM_STEPS) if has_evaluation else None,
        evaluates_first=False,
        save_every=Every(1),
        patience=None,
    )


def _as_small(loaded: LoadedStrategy) -> LoadedStrategy:
    """Return the strategy with no tracker told of a rehearsal, and a few answers."""
    strategy = loaded.strategy
    monitoring = strategy.monitoring.model_copy(
        update={
            "report_to": (),
            "log_tensorboard": False,
            "save_checkpoints": True,
            "sample_rows": min(_NUM_ANSWERS, strategy.monitoring.sample_rows),
        }
    )
    return replace(loaded, strategy=strategy.model_copy(update={"monitoring": monitoring}))


def _export(loaded: LoadedStrategy, result: RunResult, folder: Path) -> None:
    """Export as the strategy asks, else merge."""
    with _quietly():
        if export_run(loaded, result.final_model) is None:
            export(result.final_model, folder, ExportWishes(SAFETENSORS))
    shutil.rmtree(folder, ignore_errors=True)


def _as_probe(result: RunResult) -> ProbeResult:
    return ProbeResult(
        result.num_steps,
        result.num_tokens / result.train_seconds,
        result.flops_per_second,
        result.peak_memory_bytes,
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Leave warnings and errors of what is tried, and no more."""
    was_quiet, terminal.mode.is_quiet = terminal.mode.is_quiet, True
    try:
        yield
    finally:
        terminal.mode.is_quiet = was_quiet


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
    terminal.say(f"{name:<28}{seconds[name]:.1f} s")
