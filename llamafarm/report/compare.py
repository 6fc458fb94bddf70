"""Several runs side by side: what they came to, what was set otherwise, their curves and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamafarm.report.facts.curves import smooth
from llamafarm.report.facts.metrics import METRICS
from llamafarm.report.facts.verdict import Verdict, judge_run
from llamafarm.report.facts.wording import (
    UNKNOWN,
    show_bytes,
    show_count,
    show_loss,
    show_seconds,
)
from llamafarm.report.plot import Plot, Series
from llamafarm.report.record import RunRecord

# What differs by nature, and says nothing of why one run came out better than another.
_NO_DIFFERENCE = ("training_args.output_dir",)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table, a text for each run; `best` is the place of the best one, if one is."""

    name: str
    values: tuple[str, ...]
    best: int | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What there is to say of several runs; `names` tell them apart, `warnings` what not to compare."""

    records: tuple[RunRecord, ...]
    names: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    figures: tuple[Row, ...]
    settings: tuple[Row, ...]
    num_same: int
    plots: tuple[Plot, ...]
    metrics: tuple[Row, ...]
    warnings: tuple[str, ...]


def compare_runs(records: Sequence[RunRecord]) -> Comparison:
    """Return a comparison of runs, in the order given."""
    names = _name_runs(records)
    settings, num_same = _differing_settings(records)
    is_comparable = _are_comparable(records)
    return Comparison(
        records=tuple(records),
        names=tuple(names),
        verdicts=tuple(map(judge_run, records)),
        figures=tuple(_figures(records) if is_comparable else _without_best(_figures(records))),
        settings=tuple(settings),
        num_same=num_same,
        plots=tuple(_plots(records, names)),
        metrics=tuple(_metrics(records) if is_comparable else _without_best(_metrics(records))),
        warnings=tuple(_warnings(records)),
    )


def _name_runs(records: Sequence[RunRecord]) -> list[str]:
    """Return names that tell the runs apart: of their folders, with as much of the path as that takes."""
    paths = [record.folder.absolute().parts for record in records]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{index}: {record.folder.name}" for index, record in enumerate(records, 1)]


def _are_comparable(records: Sequence[RunRecord]) -> bool:
    """Return whether the same figure means the same in all runs: one base model, one set of held-out rows."""
    bases = {record.base_model for record in records}
    return len(bases) == 1 and len(_held_out_rows(records)) <= 1


def _held_out_rows(records: Sequence[RunRecord]) -> set[str | None]:
    return {record.evaluation.sha256 for record in records if record.evaluation}


def _without_best(rows: Sequence[Row]) -> list[Row]:
    return [Row(row.name, row.values) for row in rows]


def _figures(records: Sequence[RunRecord]) -> list[Row]:
    def numbers(name: str) -> list[float | None]:
        return [record.result.get(name) for record in records]

    speeds = [
        tokens / seconds if tokens is not None and seconds else None
        for tokens, seconds in zip(numbers("num_tokens"), numbers("train_seconds"), strict=True)
    ]
    rows = [
        Row("base model", tuple(record.base_model or UNKNOWN for record in records)),
        _row("eval_loss", numbers("eval_loss"), show_loss, -1),
        _row("eval_perplexity", numbers("eval_perplexity"), show_loss, -1),
        _row("train_loss", numbers("train_loss"), show_loss, 0),
        _row("steps", [record.num_steps for record in records], show_count, 0),
        _row("epochs", numbers("num_epochs"), lambda value: UNKNOWN if value is None else f"{value:.3g}", 0),
        _row("best step", numbers("best_step"), show_count, 0),
        _row("seconds of steps", numbers("train_seconds"), show_seconds, 0),
        _row("tokens per second", speeds, show_count, 0),
        _row("memory at the peak", numbers("peak_memory_bytes"), show_bytes, 0),
    ]
    return [row for row in rows if any(value != UNKNOWN for value in row.values)]


def _row(name: str, values: Sequence[float | None], show: Callable[[float | None], str], better: int) -> Row:
    """Return a row with its best value marked, where one is alone the best."""
    known = [better * value for value in values if value is not None]
    best = None
    if better and len(known) > 1 and known.count(max(known)) == 1:
        best = next(i for i, value in enumerate(values) if value is not None and better * value == max(known))
    return Row(name, tuple(map(show, values)), best)


def _differing_settings(records: Sequence[RunRecord]) -> tuple[list[Row], int]:
    """Return the settings and data that are not the same in all runs, and how many settings are."""
    by_run = [{setting.path: setting.value for setting in record.settings} for record in records]
    paths = list(
        dict.fromkeys(path for settings in by_run for path in settings if path not in _NO_DIFFERENCE)
    )
    rows = [Row(path, tuple(settings.get(path, UNKNOWN) for settings in by_run)) for path in paths]
    differing = [row for row in rows if _differs(row)]
    hashes = tuple(
        ", ".join(f"{file.file.rpartition('/')[2]} {(file.sha256 or UNKNOWN)[:12]}" for file in record.data)
        or UNKNOWN
        for record in records
    )
    if len(set(hashes)) > 1:
        differing.append(Row("data files", hashes))
    for name in dict.fromkeys(name for record in records for name in record.versions):
        row = Row(f"version of {name}", tuple(record.versions.get(name, UNKNOWN) for record in records))
        if _differs(row):
            differing.append(row)
    return differing, sum(not _differs(row) for row in rows)


def _differs(row: Row) -> bool:
    """Return whether known values differ; that an older run lacks a setting says nothing of it."""
    return len(set(row.values) - {UNKNOWN}) > 1


def _plots(records: Sequence[RunRecord], names: Sequence[str]) -> list[Plot]:
    evaluated, trained = [], []
    for color, (record, name) in enumerate(zip(records, names, strict=True), 1):
        if record.evaluations:
            steps, losses = zip(*record.evaluations, strict=True)
            evaluated.append(Series(name, steps, losses, "points", color))
        lines = record.trained_lines
        trained.append(Series(name, [line.step for line in lines], smooth(lines), "line", color))
    loss = "nats per trained token"
    plots = (
        Plot("Evaluation loss", f"eval_loss, {loss}", tuple(evaluated), from_zero=True, may_be_log=True),
        Plot(
            "Training loss, running median",
            f"train_loss, {loss}",
            tuple(trained),
            from_zero=True,
            may_be_log=True,
        ),
    )
    return [plot for plot in plots if not plot.is_empty]


def _metrics(records: Sequence[RunRecord]) -> list[Row]:
    tuned = [
        record.evaluation.tuned.figures if record.evaluation and record.evaluation.tuned else {}
        for record in records
    ]
    rows = [
        _row(metric.name, [figures.get(metric.name) for figures in tuned], metric.show, metric.better)
        for metric in METRICS
    ]
    return [row for row in rows if any(value != UNKNOWN for value in row.values)]


def _warnings(records: Sequence[RunRecord]) -> list[str]:
    warnings = []
    if len(_held_out_rows(records)) > 1:
        warnings.append("The runs were evaluated on different rows: their metrics do not compare.")
    if len({record.base_model for record in records}) > 1:
        warnings.append(
            "The runs have different base models: where their tokenizers differ, a loss per token does not "
            "compare."
        )
    unfinished = [record.folder.name for record in records if not record.is_finished]
    if unfinished:
        warnings.append(f"Not finished: {', '.join(unfinished)}.")
    return warnings
