"""`data clean`: write the rows of a file that are worth training on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llamafarm import terminal
from llamafarm.commands.options import PrintsJson, set_mode

_MOST_BAD_ROWS_SHOWN = 5


def clean(
    file: Annotated[Path, typer.Argument(help="Data file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write; else STEM_clean.jsonl beside it.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write what was left out, and why, as JSON.")
    ] = None,
    drops_near: Annotated[
        bool, typer.Option("--near-duplicates", help="Leave out what is nearly the same as an earlier row.")
    ] = False,
    threshold: Annotated[
        float,
        typer.Option("--threshold", min=0.5, max=1, help="How alike nearly the same rows are."),
    ] = 0.85,
    filters_quality: Annotated[
        bool, typer.Option("--quality", help="Leave out answers that are cut off, loop, or are no answers.")
    ] = False,
    prints_json: PrintsJson = False,
) -> None:
    """Write the rows that are worth training on: what repeats or cannot be read is left out, and listed.

    The file itself stays as it is. A strategy does the same by data_preprocessing.remove_duplicates,
    remove_near_duplicates and filter_quality.
    """
    from llamafarm.data.reading.files import stem_of
    from llamafarm.data.selection.cleaning import CleaningRules, clean_file
    from llamafarm.strict_json import to_json

    set_mode(prints_json=prints_json)
    target = output or file.with_name(f"{stem_of(file)}_clean.jsonl")
    rules = CleaningRules(True, threshold if drops_near else None, filters_quality)
    made = clean_file(file, target, rules)
    if report is not None:
        terminal.write_text(report, to_json(made.as_record(), indent=1) + "\n")
    if prints_json:
        terminal.result_json(made.as_record())
        return
    for left_out in made.left_out:
        terminal.say(str(left_out))
    if made.num_bad_rows:
        terminal.say(f"{made.num_bad_rows} rows are left out, because they cannot be read; the first:")
    for bad in made.bad_rows[:_MOST_BAD_ROWS_SHOWN]:
        terminal.say(f"{bad.where}: {bad.problem}")
    terminal.result(f"{made.file}  {made.num_kept} of {made.num_rows} rows")
