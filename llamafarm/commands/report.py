"""`report`: write a run's report and model card anew, or set several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llamafarm import terminal
from llamafarm.commands.options import IsQuiet, PrintsJson, set_mode


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN…", help="Folder of a run; several are compared.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write. Else report.html in the run's folder; of several, here."
        ),
    ] = None,
    prints_json: PrintsJson = False,
    is_quiet: IsQuiet = False,
) -> None:
    """Write a run's report and model card anew, or a comparison of several runs.

    The report is one HTML file that opens offline; a run that has not finished is reported as far as it got.
    """
    from llamafarm.report.facts.verdict import judge_run
    from llamafarm.report.record import read_run

    set_mode(prints_json=prints_json, is_quiet=is_quiet)
    records = [read_run(run) for run in runs]
    path, card = _write_one(runs[0], output) if len(runs) == 1 else (_write_several(runs, output), None)
    verdicts = [judge_run(record) for record in records]
    for record, verdict in zip(records, verdicts, strict=True):
        named = f"{record.folder}: " if len(records) > 1 else ""
        terminal.say(f"{named}{verdict.sentence}")
    if not prints_json:
        terminal.result(str(path))
        return
    described: list[dict[str, Any]] = [
        {
            "run": str(record.folder),
            "strategy": record.strategy,
            "is_finished": record.is_finished,
            "verdict": verdict.short,
            "sentence": verdict.sentence,
        }
        for record, verdict in zip(records, verdicts, strict=True)
    ]
    terminal.result_json({"report": path, "model_card": card, "runs": described})


def _write_one(run: Path, output: Path | None) -> tuple[Path, Path | None]:
    """Write the report, and the model card where there is a model."""
    from llamafarm.report.card import CARD_FILE, write_card
    from llamafarm.report.page import write_report
    from llamafarm.report.record import FINAL_MODEL, read_run

    path = write_report(run, output)
    record = read_run(run)
    if not record.has_final_model:
        return path, None
    write_card(run)
    return path, record.folder / FINAL_MODEL / CARD_FILE


def _write_several(runs: list[Path], output: Path | None) -> Path:
    from llamafarm.report.page import REPORT_FILE, write_comparison

    path = output or Path(REPORT_FILE)
    write_comparison(runs, path)
    return path
