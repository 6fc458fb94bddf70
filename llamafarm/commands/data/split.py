"""`data split`: split a data file for training and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamafarm import terminal
from llamafarm.commands.options import PrintsJson, set_mode


def split(
    input_file: Annotated[Path, typer.Option("--input", "-i", help="Data file to split.")],
    eval_percent: Annotated[
        float, typer.Option("--eval-percent", "-e", help="Share of the rows for evaluation.")
    ] = 10,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Decides which rows.")] = 42,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Where to write; else beside the file.")
    ] = None,
    stratify_by: Annotated[
        str | None, typer.Option("--stratify-by", metavar="COLUMN", help="Each value of it keeps its share.")
    ] = None,
    prints_json: PrintsJson = False,
) -> None:
    """Split a data file into STEM_train.jsonl and STEM_eval.jsonl.

    Rows that are the same, or nearly so, never fall on both sides.
    """
    from dataclasses import asdict

    from llamafarm.data.selection.corpus import split_file

    set_mode(prints_json=prints_json)
    made = split_file(
        input_file, eval_percent=eval_percent, seed=seed, output_dir=output_dir, stratify_by=stratify_by
    )
    if prints_json:
        terminal.result_json(asdict(made))
        return
    terminal.result(f"{made.train_file}  {made.num_train_rows} rows")
    terminal.result(f"{made.eval_file}  {made.num_eval_rows} rows")
    if made.num_kept_together:
        terminal.say(
            f"{made.num_kept_together} rows are, or nearly are, training rows, and were kept on that side"
        )
