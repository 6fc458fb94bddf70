"""`data inspect`: a data file in figures, and what is odd in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llamafarm import terminal
from llamafarm.commands.data.opening import OpenData, open_data
from llamafarm.commands.options import PrintsJson, Settings, StrategyFile, StrategyName, set_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from llamafarm.data.encoding.block import EncodedBlock
    from llamafarm.data.reading.records import DataReader
    from llamafarm.inspection.statistics import Statistics
    from llamafarm.strategy.schema import Strategy
    from llamafarm.training.preparation.gate import Finding, GateFigures

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
    from llamafarm.data.encoding.block import BlockEncoder
    from llamafarm.data.encoding.processes import encode_file
    from llamafarm.data.selection.traces import TracesWanted
    from llamafarm.inspection.statistics import measure_rows
    from llamafarm.training.preparation.rows import num_encoding_processes, show_reading

    set_mode(prints_json=prints_json)
    opened = open_data(file, strategy, strategy_file, settings)
    reader, encoder = opened.reader, opened.encoder
    figures = _gate_figures(opened)
    blocks = encode_file(
        reader,
        BlockEncoder(reader.options, encoder.encoding, TracesWanted(of_oddities=True)),
        num_encoding_processes(opened.strategy.training_args.dataloader_num_workers),
    )
    with show_reading(reader) as on_block:
        found = measure_rows(_passing(blocks, opened, figures, on_block), opened.limits)
    findings = _findings_of(figures, opened.strategy)
    if prints_json:
        terminal.result_json(_as_record(reader, found, findings))
        return
    print_line = terminal.result
    print_line(f"{file}: {found.num_rows:,} rows of the form {reader.format_name}")
    print_line(f"{encoder.base.name}'s tokenizer; template: {encoder.template_origin}")
    print_line(f"{found.num_tokens:,} tokens, {found.supervised_share:.0%} of them trained on")
    print_line("\ntokens of a row")
    print_line("  " + "   ".join(f"{name}: {length}" for name, length in found.percentiles().items()))
    most = max(count for _, _, count in found.histogram())
    for start, end, count in found.histogram():
        bar = "█" * round(count / most * _BAR_WIDTH)
        print_line(f"  {start:>6} to {end:<6} {count:>8,}  {bar}".rstrip())
    _show_oddities(reader, found)
    terminal.result("\nthe check before the first step")
    for finding in findings:
        state = "blocks" if finding.is_blocking else "warns"
        terminal.result(f"  {state}: {finding.problem} ({finding.name})\n      {finding.remedy}")
    if not findings:
        terminal.result("  nothing that blocks, nothing to warn of")


def _gate_figures(opened: OpenData) -> GateFigures:
    from llamafarm.training.preparation.gate import gate_figures

    encoder, method = opened.encoder, opened.strategy.method.type
    return gate_figures(encoder.base, encoder.tokenizer, encoder.encoding.template, method)


def _passing(
    blocks: Iterable[EncodedBlock], opened: OpenData, figures: GateFigures, on_block: Callable[[int], None]
) -> Iterator[EncodedBlock]:
    """Yield blocks as they come; those of their rows that would be trained on are counted for the gate."""
    import numpy as np

    for block in blocks:
        rows = block.rows()
        is_within_R = np.ones(len(rows), bool)
        for excess in opened.limits.excesses(rows.lengths_N, rows.num_supervised_N):
            is_within_R &= ~excess.is_above_N
        figures.add(rows.select(np.flatnonzero(is_within_R)))
        on_block(opened.reader.num_bytes_read)
        yield block


def _findings_of(figures: GateFigures, strategy: Strategy) -> list[Finding]:
    """Return what the check before the first step would find with this file alone."""
    from llamafarm.strategy.schema import fixed_count
    from llamafarm.training.preparation.batch import settle_batch_size
    from llamafarm.training.preparation.gate import find_faults

    args, _ = settle_batch_size(strategy.training_args, figures.num_rows, 1, "")
    rows_per_step = fixed_count(args.per_device_train_batch_size) * fixed_count(
        args.gradient_accumulation_steps
    )
    steps_per_epoch = max(-(-figures.num_rows // rows_per_step), 1)
    return [
        found for found in find_faults(figures, steps_per_epoch) if found.name not in strategy.dataset.allow
    ]


def _show_oddities(reader: DataReader, found: Statistics) -> None:
    odd = {name: oddity for name, oddity in found.oddities.items() if oddity.num_rows}
    terminal.result("\nnothing odd" if not odd and not reader.num_bad_rows else "\nodd")
    for name, oddity in odd.items():
        terminal.result(f"  {oddity.num_rows:>7,}  {name} (rows {oddity})")
    if reader.num_bad_rows:
        terminal.result(f"  {reader.num_bad_rows:>7,}  cannot be read")
        for bad in reader.bad_rows[:5]:
            terminal.result(f"           {bad.where}: {bad.problem}")


def _as_record(reader: DataReader, found: Statistics, findings: Sequence[Finding]) -> dict[str, Any]:
    from dataclasses import asdict

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
        "gate": [asdict(finding) for finding in findings],
    }
