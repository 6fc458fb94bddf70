"""`evaluate`: loss and answers on held-out rows, the base beside the tuned model, or several models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm import terminal
from llamafarm.commands.evaluated import keep_with_run, show_evaluation, show_side_by_side
from llamafarm.commands.opening import open_model
from llamafarm.commands.options import (
    IsQuiet,
    PrintsJson,
    Settings,
    StrategyFile,
    StrategyName,
    load_with_options,
    set_mode,
)

if TYPE_CHECKING:
    from llamafarm.data.reading.records import DataFile
    from llamafarm.evaluation.evaluate import Evaluation
    from llamafarm.evaluation.general import GeneralText
    from llamafarm.inference.open import OpenModel


def evaluate(
    strategy: StrategyName = None,
    strategy_file: StrategyFile = None,
    eval_dataset: Annotated[
        Path | None,
        typer.Option("--eval-dataset", "--file", help="Held-out rows. Else the strategy's eval_file."),
    ] = None,
    models: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            help="A final_model, run or checkpoint folder; several are set side by side. With it, no "
            "strategy is needed.",
        ),
    ] = None,
    uses_base: Annotated[bool, typer.Option("--base", help="Measure the base model alone.")] = False,
    num_rows: Annotated[int | None, typer.Option("--rows", min=1, help="Only the first rows.")] = None,
    general: Annotated[
        str | None,
        typer.Option(
            "--general",
            metavar="FILE",
            help="Text on which forgetting is measured, a paragraph a line; `no` leaves it out. Else the "
            "built-in one.",
        ),
    ] = None,
    num_examples: Annotated[int, typer.Option("--examples", min=0, help="Answers to show.")] = 3,
    settings: Settings = None,
    prints_json: PrintsJson = False,
    is_quiet: IsQuiet = False,
) -> None:
    """Measure the trained model on held-out rows, its base beside it.

    Loss and perplexity; answers by exact match, token F1, ROUGE-L, chrF and BLEU, how many end by themselves
    and how many repeat themselves; what was forgotten of general text. Behind each change from base to tuned
    stands the interval that it lies in 19 times of 20. Of a run's own model it is kept in evaluation.json.
    """
    set_mode(prints_json=prints_json, is_quiet=is_quiet)
    data = _read_rows(strategy, strategy_file, settings, eval_dataset, is_alone=bool(models))
    data = replace(data, conversations=data.conversations[:num_rows])
    general_text = _read_general(general)
    evaluations: list[Evaluation] = []
    records: list[dict[str, Any]] = []
    bases: set[str] = set()
    for model in models or (None,):
        # One at a time in memory: what is kept of each are its figures.
        opened = open_model(model, strategy, strategy_file, settings, uses_base=uses_base)
        name = _name_of(opened.name) if models and len(models) > 1 else "tuned"
        evaluation = _evaluate(opened, name, data, general_text, with_base=opened.base_name not in bases)
        bases.add(opened.base_name)
        evaluations.append(evaluation)
        records.append(_describe(opened, evaluation, data, general_text))
        if not models or len(models) == 1:
            keep_with_run(opened, records[0])
    if prints_json:
        terminal.result_json(records[0] if len(records) == 1 else {"models": records})
    elif len(evaluations) == 1:
        show_evaluation(evaluations[0], num_examples)
    else:
        show_side_by_side(evaluations, num_examples)


def _evaluate(
    opened: OpenModel, name: str, data: DataFile, general: GeneralText, *, with_base: bool
) -> Evaluation:
    from llamafarm.evaluation.evaluate import evaluate_model

    return evaluate_model(
        opened,
        data.conversations,
        str(data.path),
        general.paragraphs,
        with_base=with_base,
        tuned_name=name,
    )


def _name_of(name: str) -> str:
    """Return a short name of one of several models: that of its run, or of its checkpoint."""
    folder = Path(name).absolute()
    return folder.parent.name if folder.name == "final_model" else folder.name


def _read_rows(
    strategy: str | None,
    strategy_file: Path | None,
    settings: list[str] | None,
    eval_dataset: Path | None,
    *,
    is_alone: bool,
) -> DataFile:
    """Read the rows of the option, or of the strategy; without a strategy (`is_alone`) of the option only."""
    from llamafarm.data.reading.records import ReadOptions, read_data_file
    from llamafarm.errors import InputError
    from llamafarm.strategy.load import resolve_path

    path, reading = eval_dataset, ReadOptions()
    if not is_alone:
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
    return data


def _read_general(named: str | None) -> GeneralText:
    """Return the general text; an empty one for `no`."""
    from llamafarm.evaluation.general import GeneralText, read_general_text

    return GeneralText.nothing() if named == "no" else read_general_text(Path(named) if named else None)


def _describe(
    opened: OpenModel, evaluation: Evaluation, data: DataFile, general: GeneralText
) -> dict[str, Any]:
    from llamafarm.evaluation.record import describe_evaluation

    return {
        "model": opened.name,
        "base_model": opened.base_name,
        **describe_evaluation(
            evaluation, str(data.path), data.sha256, general, opened.settings.max_new_tokens, is_held_out=True
        ),
    }
