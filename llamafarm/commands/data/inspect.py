"""`data inspect`: a data file in figures, and what is odd in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm import terminal
from llamafarm.commands.data.opening import open_data
from llamafarm.commands.options import PrintsJson, Settings, StrategyFile, StrategyName, set_mode

if TYPE_CHECKING:
    from llamafarm.data.reading.records import DataReader
    from llamafarm.inspection.statistics import Statistics

_BAR_WIDTH = 40


def inspect(
    file: Annotated[Path, typer.Argument(help="Data file, or a folder of them.")],
    strategy: StrategyName = None,
    strategy_file: StrategyFile = None,
    settings: Settings = None,
    prints_json: PrintsJson = False,
) -> None:
    """Say what is in a data file: rows, lengths in tokens, what is trained on, repeats and oddities.

    Rows that cannot be read are counted and listed. Without a strategy the embedded model's tokenizer and
    template are used.
    """
    from dataclasses import replace

    from llamafarm.inspection.statistics import measure_rows

    set_mode(prints_json=prints_json)
    reader, encoder, max_length = open_data(file, strategy, strategy_file, settings)
    reader.options = replace(reader.options, skips_bad_rows=True)
    found = measure_rows(encoder.encode(reader), max_length)
    if prints_json:
        terminal.result_json(_as_record(reader, found))
        return
    print_line = terminal.result
    print_line(f"{file}: {found.num_rows:,} rows of the form {reader.format_name}")
    print_line(f"{encoder.base_name}'s tokenizer; template: {encoder.template_origin}")
    print_line(f"{found.num_tokens:,} tokens, {found.supervised_share:.0%} of them trained on")
    print_line("\ntokens of a row")
    print_line("  " + "   ".join(f"{name}: {length}" for name, length in found.percentiles().items()))
    most = max(count for _, _, count in found.histogram())
    for start, end, count in found.histogram():
        bar = "█" * round(count / most * _BAR_WIDTH)
        print_line(f"  {start:>6} to {end:<6} {count:>8,}  {bar}".rstrip())
    _show_oddities(reader, found)


def _show_oddities(reader: DataReader, found: Statistics) -> None:
    odd = {name: oddity for name, oddity in found.oddities.items() if oddity.num_rows}
    terminal.result("\nnothing odd" if not odd and not reader.num_bad_rows else "\nodd")
    for name, oddity in odd.items():
        rows = ", ".join(map(str, oddity.first_rows)) + (", …" if oddity.num_rows > 5 else "")
        terminal.result(f"  {oddity.num_rows:>7,}  {name} (rows {rows})")
    if reader.num_bad_rows:
        terminal.result(f"  {reader.num_bad_rows:>7,}  cannot be read")
        for bad in reader.bad_rows[:5]:
            terminal.result(f"           {bad.where}: {bad.problem}")


def _as_record(reader: DataReader, found: Statistics) -> dict[str, Any]:
    return {
        "file": str(reader.path),
        "sha256": reader.sha256,
        "format": reader.format_name,
        "num_rows": found.num_rows,
        "num_empty_rows": reader.num_empty_rows,
        "num_bad_rows": reader.num_bad_rows,
        "bad_rows": [{"where": bad.where, "problem": bad.problem} for bad in reader.bad_rows],
        "num_tokens": found.num_tokens,
        "supervised_share": found.supervised_share,
        "length_percentiles": found.percentiles(),
        "length_histogram": [
            {"from": start, "to": end, "rows": count} for start, end, count in found.histogram()
        ],
        "oddities": {
            name: {"rows": oddity.num_rows, "first_rows": oddity.first_rows}
            for name, oddity in found.oddities.items()
        },
    }
