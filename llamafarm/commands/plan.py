"""`plan`: what a run will take, in memory, time and disk, before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm import terminal
from llamafarm.commands.amounts import show_mib, show_seconds
from llamafarm.commands.options import (
    PrintsJson,
    Settings,
    StrategyFile,
    StrategyName,
    load_with_options,
    set_mode,
    show_settings,
)

if TYPE_CHECKING:
    from llamafarm.planning.fit import MemoryDecision
    from llamafarm.training.outlook import Outlook
    from llamafarm.training.preparation.prepare import Preparation
    from llamafarm.training.probe import ProbeResult

_BAR_WIDTH = 30


def plan(
    strategy: StrategyName = None,
    strategy_file: StrategyFile = None,
    train_dataset: Annotated[
        str | None, typer.Option("--train-dataset", "--dataset", "-d", help="File with the training rows.")
    ] = None,
    settings: Settings = None,
    probes: Annotated[
        bool, typer.Option("--probe", help="Load the model and take three steps, to measure both.")
    ] = False,
    prints_json: PrintsJson = False,
) -> None:
    """Say what training will take, and what to change if it does not fit; nothing is written.

    Peak memory by part, packs, steps, time and disk follow by arithmetic from the model's configuration and
    the lengths of the rows. Exit code 3 when `train` would refuse the run for want of memory.
    """
    import tempfile
    from pathlib import Path

    set_mode(prints_json=prints_json)
    loaded = load_with_options(
        strategy, strategy_file, settings, {"--train-dataset": ("dataset.train_file", train_dataset)}
    )

    from llamafarm.training.outlook import look_ahead
    from llamafarm.training.preparation.memory import refuse_what_does_not_fit
    from llamafarm.training.preparation.prepare import prepare
    from llamafarm.training.probe import probe_steps

    if not prints_json:
        show_settings(loaded)
    with tempfile.TemporaryDirectory() as scratch:
        preparation = prepare(loaded, scratch_dir=None if probes else Path(scratch))
    decision = preparation.memory
    probe = None
    if probes and not decision.fits:
        terminal.warn("no probe is taken of a run that does not fit")
    elif probes:
        probe = probe_steps(preparation, loaded.strategy)
    outlook = look_ahead(preparation, loaded.strategy, probe)
    record = _as_record(loaded.key, preparation, outlook, probe)
    if not prints_json:
        _show_choices(preparation)
        _show_memory(decision, probe)
        _show_course(preparation, outlook)
        _show_proposal(decision)
    refuse_what_does_not_fit(decision, details=record)
    if prints_json:
        terminal.result_json(record)


def _show_choices(preparation: Preparation) -> None:
    terminal.heading("what was settled")
    for warning in preparation.warnings:
        terminal.warn(warning)
    terminal.columns([(choice.setting, choice.value, f"({choice.why})") for choice in preparation.choices])


def _show_memory(decision: MemoryDecision, probe: ProbeResult | None) -> None:
    memory = decision.plan
    print_line = terminal.result
    print_line("\nmemory at the peak")
    for name, num_bytes in memory.parts():
        if num_bytes or name != "loading":
            bar = "█" * round(num_bytes / memory.total_bytes * _BAR_WIDTH)
            print_line(f"  {name:<13}{show_mib(num_bytes):>13}  {bar}".rstrip())
    print_line(f"  {'in all':<13}{show_mib(memory.total_bytes):>13}  predicted")
    if probe is not None:
        error = memory.total_bytes / probe.peak_memory_bytes - 1
        print_line(
            f"  {'measured':<13}{show_mib(probe.peak_memory_bytes):>13}  the prediction is {error:+.1%} off"
        )
    verdict = "it fits" if decision.fits else "it does not fit"
    print_line(f"  {'available':<13}{show_mib(decision.available_bytes):>13}  {verdict}")


def _show_course(preparation: Preparation, outlook: Outlook) -> None:
    plan, disk = preparation.plan, outlook.disk
    packs = f"{outlook.packs_of_first_step} for a step, of at most {preparation.memory.pack_tokens} tokens"
    saved = f"{show_mib(disk.checkpoints)} in checkpoints, {show_mib(disk.final_model)} in the final model"
    exported = f", {show_mib(disk.export)} in exports" if disk.export else ""
    terminal.result("")
    for name, text in (
        ("rows", f"{plan.num_rows}, {outlook.tokens_per_epoch:,} tokens an epoch"),
        ("packs", packs),
        ("steps", f"{plan.num_steps} of {plan.rows_per_step} rows, {plan.steps_per_epoch} an epoch"),
        ("time", f"{show_seconds(outlook.seconds)}, from {outlook.time_basis}"),
        ("disk", f"{show_mib(disk.total_bytes)}: {saved}{exported}"),
    ):
        terminal.result(f"{name:<15}{text}")


def _show_proposal(decision: MemoryDecision) -> None:
    proposal = decision.proposal
    if proposal is None or not proposal.changes:
        return
    how = "it fits with" if proposal.fits else "even these do not make it fit"
    terminal.result(f"\nwhat to change, in the order of the guide's out-of-memory table: {how}")
    for change in proposal.changes:
        terminal.result(f"  {change}")


def _as_record(
    key: str, preparation: Preparation, outlook: Outlook, probe: ProbeResult | None
) -> dict[str, Any]:
    from dataclasses import asdict

    decision, plan = preparation.memory, preparation.plan
    return {
        "strategy": key,
        "memory": {
            "parts_bytes": dict(decision.plan.parts()),
            "total_bytes": decision.plan.total_bytes,
            "available_bytes": decision.available_bytes,
            "fits": decision.fits,
        },
        "pack_tokens": decision.pack_tokens,
        "checkpointed_blocks": decision.checkpointed_blocks,
        "packs_of_first_step": outlook.packs_of_first_step,
        "num_rows": plan.num_rows,
        "rows_per_step": plan.rows_per_step,
        "num_steps": plan.num_steps,
        "tokens_per_epoch": outlook.tokens_per_epoch,
        "flops": outlook.flops,
        "seconds": outlook.seconds,
        "time_basis": outlook.time_basis,
        "disk_bytes": {**asdict(outlook.disk), "total": outlook.disk.total_bytes},
        "proposal": asdict(decision.proposal) if decision.proposal else None,
        "probe": asdict(probe) if probe else None,
        "choices": [asdict(choice) for choice in preparation.choices],
        "warnings": preparation.warnings,
    }
