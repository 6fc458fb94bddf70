"""`evaluate`: loss, perplexity and exact match on held-out rows, the base beside the tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamafarm import terminal
from llamafarm.commands.opening import ModelFolder, open_model
from llamafarm.commands.options import (
    IsQuiet,
    PrintsJson,
    Settings,
    StrategyFile,
    StrategyName,
    load_with_options,
    set_mode,
)


def evaluate(
    strategy: StrategyName = None,
    strategy_file: StrategyFile = None,
    eval_dataset: Annotated[
        Path | None,
        typer.Option("--eval-dataset", "--file", help="Held-out rows. Else the strategy's eval_file."),
    ] = None,
    model: ModelFolder = None,
    uses_base: Annotated[bool, typer.Option("--base", help="Measure the base model alone.")] = False,
    num_examples: Annotated[int, typer.Option("--examples", min=0, help="Answers to show.")] = 3,
    settings: Settings = None,
    prints_json: PrintsJson = False,
    is_quiet: IsQuiet = False,
) -> None:
    """Measure the trained model on held-out rows, its base beside it."""
    from llamafarm.data.reading.records import ReadOptions, read_data_file
    from llamafarm.errors import InputError
    from llamafarm.evaluation.evaluate import evaluate_model
    from llamafarm.strategy.load import resolve_path

    set_mode(prints_json=prints_json, is_quiet=is_quiet)
    path = eval_dataset
    reading = ReadOptions()
    if model is None:
        named = {"--eval-dataset": ("dataset.eval_file", eval_dataset)}
        loaded = load_with_options(strategy, strategy_file, settings, named)
        named_file = loaded.strategy.dataset.eval_file
        path = resolve_path(named_file, loaded) if named_file else None
        reading = ReadOptions.of(loaded.strategy.dataset, loaded.strategy.data_preprocessing)
    if path is None:
        raise InputError(
            "there are no rows to evaluate on",
            where="dataset.eval_file",
            remedy="Pass --eval-dataset with a JSONL file.",
        )
    data = read_data_file(path, reading)
    for warning in data.warnings():
        terminal.warn(warning)
    opened = open_model(model, strategy, strategy_file, settings, uses_base=uses_base)
    measured = evaluate_model(opened, data.conversations, str(path))
    if prints_json:
        terminal.result_json(
            {"file": str(path), "model": opened.name, **{m.which: m.as_record() for m in measured}}
        )
        return
    for one in measured:
        terminal.result(one.as_line())
    shown = measured[0].conversations[:num_examples]
    for index, conversation in enumerate(shown):
        turns = conversation.messages
        terminal.say(f"\n{turns[-2].content}\n  expected  {turns[-1].content}")
        for one in measured:
            terminal.say(f"  {one.which:<9} {one.answers[index].text}")
