"""`train`: fine-tune a model as a strategy says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llamafarm import terminal
from llamafarm.commands.amounts import show_mib, show_seconds
from llamafarm.commands.options import (
    IsQuiet,
    PrintsJson,
    Settings,
    StrategyFile,
    StrategyName,
    load_with_options,
    set_mode,
    show_settings,
)

if TYPE_CHECKING:
    from llamafarm.deploy.convert import Exported
    from llamafarm.strategy.load import LoadedStrategy
    from llamafarm.training.result import RunResult


Resume = Annotated[
    str,
    typer.Option(
        metavar="auto|never|PATH",
        help="Go on with an unfinished run in the output folder, or from the checkpoint PATH.",
    ),
]
Rehearses = Annotated[
    bool,
    typer.Option(
        "--rehearse",
        help="Only do it all in small, in a temporary folder: steps, resume, answers, export.",
    ),
]


def train(
    strategy: StrategyName = None,
    strategy_file: StrategyFile = None,
    train_dataset: Annotated[
        str | None, typer.Option("--train-dataset", "--dataset", "-d", help="File with the training rows.")
    ] = None,
    eval_dataset: Annotated[str | None, typer.Option(help="File with the evaluation rows.")] = None,
    output_dir: Annotated[Path | None, typer.Option("--output-dir", "-o", help="Folder for the run.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the training rows.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps after which to stop.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per device and micro-batch.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest step size of the schedule.")] = None,
    settings: Settings = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in the output folder.")
    ] = False,
    resume: Resume = "auto",
    rehearses: Rehearses = False,
    prints_json: PrintsJson = False,
    is_quiet: IsQuiet = False,
) -> None:
    """Fine-tune a model as a strategy says.

    A run that was ended on the way goes on when the same command is given again: from its newest checkpoint,
    and to the same bytes. Ctrl-C saves before it leaves; a second one leaves at once.
    """
    from llamafarm.training.export import export_run
    from llamafarm.training.run import run_training

    set_mode(prints_json=prints_json, is_quiet=is_quiet)
    loaded = load_with_options(
        strategy,
        strategy_file,
        settings,
        {
            "--train-dataset": ("dataset.train_file", train_dataset),
            "--eval-dataset": ("dataset.eval_file", eval_dataset),
            "--output-dir": ("training_args.output_dir", output_dir),
            "--epochs": ("training_args.num_train_epochs", epochs),
            "--max-steps": ("training_args.max_steps", max_steps),
            "--batch-size": ("training_args.per_device_train_batch_size", batch_size),
            "--learning-rate": ("training_args.learning_rate", learning_rate),
        },
    )
    show_settings(loaded)
    if rehearses:
        _rehearse(loaded)
        return
    result = run_training(loaded, overwrite=overwrite, resume=resume)
    if not prints_json:
        _show(result)
    _finish(loaded, result, export_run(loaded, result.final_model))


def _rehearse(loaded: LoadedStrategy) -> None:
    """Rehearse a run, and say what the whole of it will take."""
    from dataclasses import asdict

    from llamafarm.training.rehearsal import rehearse

    found = rehearse(loaded)
    outlook = found.outlook
    if terminal.mode.prints_json:
        terminal.result_json({"strategy": loaded.key, **asdict(found)})
        return
    peak, predicted = show_mib(found.peak_memory_bytes), show_mib(found.predicted_memory_bytes)
    terminal.columns(
        [
            ("time", f"{show_seconds(outlook.seconds)}, from {outlook.time_basis}"),
            ("memory", f"{peak}, {predicted} predicted"),
            ("disk", show_mib(outlook.disk.total_bytes)),
        ]
    )
    terminal.result(f"{loaded.key} is rehearsed: all that the run will do has been done once")


def _finish(loaded: LoadedStrategy, result: RunResult, exported: Exported | None) -> None:
    """Say what was exported, and print the result."""
    import shlex
    from dataclasses import asdict

    from llamafarm.commands.exported import give_to_ollama, show_exported
    from llamafarm.deploy.convert import OLLAMA

    record = asdict(result)
    if exported is not None:
        record["export"] = show_exported(exported)
        if exported.format == OLLAMA:
            record["export"] |= give_to_ollama(exported)
    if terminal.mode.prints_json:
        terminal.result_json(record)
        return
    whom = f"--strategy {shlex.quote(loaded.key)}"
    if loaded.origins["training_args.output_dir"].kind == "command line":
        whom = f"--model {shlex.quote(str(result.final_model))}"  # the strategy would look elsewhere
    elif loaded.file:
        whom += f" --strategy-file {shlex.quote(str(loaded.file))}"
    terminal.say(f'next: python cli.py complete "…" {whom}')
    terminal.result(str(result.final_model))


def _show(result: RunResult) -> None:
    """Say what came of a run."""
    terminal.heading(
        f"trained {result.num_steps} steps in {result.train_seconds:.1f} s, "
        f"{result.num_tokens / result.train_seconds:,.0f} tokens/s"
    )
    if result.eval_loss is not None:
        terminal.say(f"eval_loss {result.eval_loss:.4f}, eval_perplexity {result.eval_perplexity:.3f}")
