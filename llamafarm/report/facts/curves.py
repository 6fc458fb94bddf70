"""The curves of a run: loss, learning rate, gradients, throughput, memory, how busy the GPU was."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llamafarm.findings.history import running_median
from llamafarm.findings.speed import LEAST_UTILIZATION
from llamafarm.report.plot import Marker, Plot, Series
from llamafarm.report.reading.lines import Line
from llamafarm.report.record import RunRecord

# A curve of so many lines has a smoothed one before it, where single steps hide where it goes.
_MOST_UNSMOOTHED = 60
_UNITS = ((2**30, "GiB"), (2**20, "MiB"))


def loss_plot(record: RunRecord) -> Plot:
    """Return the losses over the steps, with the best step and what was found where."""
    trained = record.trained_lines
    series = [*_train_series(trained)]
    evaluations = record.evaluations
    if evaluations:
        steps, losses = zip(*evaluations, strict=True)
        series.append(Series("eval_loss", steps, losses, "points", 2))
    return Plot(
        "Loss",
        "nats per trained token",
        tuple(series),
        tuple(_markers(record)),
        from_zero=True,
        may_be_log=True,
    )


def small_plots(record: RunRecord) -> list[Plot]:
    """Return the other curves, those only that the run recorded."""
    lines = record.trained_lines
    size, unit = _memory_unit(lines)
    memory = [None if (value := line.get("memory_bytes")) is None else value / size for line in lines]
    steps = [line.step for line in lines]
    norm = Series("grad_norm", steps, [line.get("grad_norm") for line in lines])
    most = record.setting("training_args.max_grad_norm")
    is_clipped = isinstance(most, int | float) and any((value or 0) > most > 0 for value in norm.values)
    plots = [
        Plot("Learning rate", "learning_rate", (_series("learning_rate", lines),), from_zero=True),
        Plot(
            "Gradient norm",
            "grad_norm before clipping",
            (norm,),
            from_zero=True,
            may_be_log=True,
            level=(float(most), f"clipped to {most:g}") if is_clipped else None,
        ),
        Plot("Throughput", "tokens per second", (_series("tokens_per_second", lines),), from_zero=True),
        Plot("Memory", f"{unit} at the peak so far", (Series("memory", steps, memory),), from_zero=True),
        Plot(
            "GPU utilization",
            "part of the time",
            (_series("gpu_utilization", lines),),
            from_zero=True,
            level=(LEAST_UTILIZATION, "the guide's 80 %"),
        ),
    ]
    return [plot for plot in plots if not plot.is_empty]


def smooth(lines: tuple[Line, ...]) -> list[float | None]:
    """Return the training loss as a running median; a gap stays one."""
    losses = np.array([np.nan if (loss := line.get("train_loss")) is None else loss for line in lines])
    is_there = np.isfinite(losses)
    smoothed = running_median(losses[is_there], max(3, len(lines) // 30))
    values: list[float | None] = [None] * len(lines)
    for place, value in zip(np.flatnonzero(is_there).tolist(), smoothed.tolist(), strict=True):
        values[place] = value
    return values


def _train_series(lines: tuple[Line, ...]) -> Iterator[Series]:
    raw = _series("train_loss", lines)
    if len(lines) <= _MOST_UNSMOOTHED:
        yield raw
        return
    yield Series("train_loss", raw.steps, raw.values, "faint", 1)
    yield Series("train_loss, running median", raw.steps, smooth(lines), "line", 1)


def _series(name: str, lines: tuple[Line, ...]) -> Series:
    return Series(name, [line.step for line in lines], [line.get(name) for line in lines])


def _markers(record: RunRecord) -> Iterator[Marker]:
    best = record.result.get("best_step")
    if best and len(record.evaluations) > 1:
        yield Marker(int(best), "best", f"step {int(best):,}: the best evaluation")
    for finding in record.findings:
        if finding.step is not None:
            yield Marker(finding.step, "", f"{finding.name}: {finding.seen}", "finding")


def _memory_unit(lines: tuple[Line, ...]) -> tuple[int, str]:
    most = max((line.get("memory_bytes") or 0.0 for line in lines), default=0.0)
    return next((unit for unit in _UNITS if most >= unit[0]), _UNITS[-1])
