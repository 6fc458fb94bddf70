"""How the live view of a run looks: a frame with a bar, the figures and a plot, for a terminal of any size.

Pure drawing: `live.py` keeps what is shown, `sketch.py` draws the plot. Only the terminal's own foreground
and green, yellow and cyan are used, which can be read on light and on dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from llamafarm.training.screen.area import Line
from llamafarm.training.screen.sketch import LossCurve, sketch_losses, steps_shown

_LARGEST_WIDTH = 120  # figures further apart are harder to read
_PLOT_NEEDS_WIDTH, _PLOT_NEEDS_HEIGHT = 60, 20
_LABEL_WIDTH = 14
# Widths of the figures' columns, by how many there are: losses come with a change or a best beside them.
_COLUMN_WIDTHS = {1: (35,), 2: (35, 29), 3: (35, 26, 29)}
_NEARLY_FULL = 0.95  # of the memory: from here on it is worth a look

Figure = tuple[Line, Line]  # label and value
_NOTHING: Line = [("–", "dim")]


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What is shown after an optimizer step. Shares are of 1.

    `part_of_peak` is what the step's operations are of the speed of plain matrix products.
    """

    step: int
    num_steps: int
    epoch: float
    num_epochs: float
    train_loss: float
    learning_rate: float
    grad_norm: float
    num_tokens: int
    seconds: float
    part_of_peak: float | None
    memory_bytes: int
    memory_limit_bytes: int | None
    gpu_utilization: float | None

    @property
    def tokens_per_second(self) -> float:
        """Return the speed of this step alone: one with few rows is slow where each step costs the same."""
        return self.num_tokens / self.seconds


@dataclass(slots=True)
class Shown:
    """Everything that the panel shows. `trend` is the change of the smoothed train loss.

    It is 0 where the change is within the noise, and None in the first steps.
    """

    title: str
    num_steps: int
    num_done: int
    memory_limit_bytes: int | None
    phase: str | None = None
    figures: StepFigures | None = None
    trend: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    evaluation: tuple[float, float] | None = None  # loss and perplexity
    best: tuple[int, float] | None = None  # step and loss
    is_best: bool = False
    train_curve: LossCurve = field(default_factory=LossCurve)
    evaluation_curve: LossCurve = field(default_factory=LossCurve)


def draw_panel(shown: Shown, width: int, height: int) -> list[Line]:
    """Return the panel's lines: none wider than `width`, at most `height - 1` of them."""
    width = min(width, _LARGEST_WIDTH)
    inner = max(width - 4, 1)
    has_plot = width >= _PLOT_NEEDS_WIDTH and height >= _PLOT_NEEDS_HEIGHT
    figures = _grid(_figures(shown, with_legend=has_plot), inner)
    body: list[Line] = [_bar(shown, inner), *_flow(_progress(shown), inner), [], *figures]
    if has_plot:
        step = shown.figures.step if shown.figures else shown.num_done
        plot = sketch_losses(
            shown.train_curve,
            shown.evaluation_curve,
            shown.best,
            first_step=shown.num_done,
            last_step=steps_shown(shown.num_done, step, shown.num_steps),
            width=inner,
            height=8 if height >= 28 else 7,
        )
        body = [*body, [], *plot]
    if width < 12 or height < 6:
        return [_fit(line, width, pads=False) for line in body[: max(height - 1, 1)]]
    framed = [[("│ ", "dim"), *_fit(line, inner), (" │", "dim")] for line in body[: height - 3]]
    return [_top(shown, width), *framed, [(f"╰{'─' * (width - 2)}╯", "dim")]]


def show_seconds(seconds: float) -> str:
    """Return a time as `12:34`, or `1:02:03` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_loss(loss: float, num_places: int = 4) -> str:
    """Return a loss or another number of its size; a huge one with its power of ten."""
    return f"{loss:.{num_places}f}" if abs(loss) < 1e4 or not math.isfinite(loss) else f"{loss:.3e}"


def _top(shown: Shown, width: int) -> Line:
    from rich.cells import cell_len, set_cell_size

    phase = f" {shown.phase} " if shown.phase and width >= len(shown.phase) + 16 else ""
    room = width - len(phase) - 8
    title = shown.title if cell_len(shown.title) <= room else set_cell_size(shown.title, room - 1) + "…"
    line = "─" * (width - len(phase) - cell_len(title) - 6)
    return [("╭─ ", "dim"), (title, "bold"), (f" {line}", "dim"), (phase, "yellow"), ("─╮", "dim")]


def _bar(shown: Shown, width: int) -> Line:
    step = shown.figures.step if shown.figures else shown.num_done
    part = min(max(step / max(shown.num_steps, 1), 0.0), 1.0)
    room = max(width - 6, 0)
    num_done = int(part * room)
    return [("━" * num_done, "green"), ("─" * (room - num_done), "dim"), (f"{int(part * 100):4} %", "bold")]


def _progress(shown: Shown) -> Iterator[str]:
    figures = shown.figures
    yield f"step {figures.step if figures else shown.num_done:,} of {shown.num_steps:,}"
    if figures:
        yield f"epoch {figures.epoch:.2f} of {figures.num_epochs:.4g}"
    yield f"{show_seconds(shown.seconds)} elapsed"
    if shown.seconds_left is not None:
        yield f"{show_seconds(shown.seconds_left)} left"


def _flow(parts: Iterator[str], width: int) -> list[Line]:
    """Put parts side by side, in as many lines as they need."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return [[(line, "")] for line in lines]


def _figures(shown: Shown, *, with_legend: bool) -> list[Figure]:
    """Return the figures; what there never is on this machine is left out."""
    figures = shown.figures
    evaluation = shown.evaluation
    curve, mark = (" ⠒⠒", " ◆") if with_legend else ("", "")
    cells: list[Figure] = [
        ([("train loss", "dim"), (curve, "cyan")], _train_loss(shown) if figures else _NOTHING),
        ([("eval loss", "dim"), (mark, "yellow")], _eval_loss(shown) if evaluation else _NOTHING),
        ([("perplexity", "dim")], [_number(show_loss(evaluation[1], 3))] if evaluation else _NOTHING),
    ]
    rest = {"learning rate": "–", "grad norm": "–", "tokens/s": "–"}
    if figures:
        rest["learning rate"] = f"{figures.learning_rate:.1e}"
        rest["grad norm"] = show_loss(figures.grad_norm, 3)
        rest["tokens/s"] = f"{figures.tokens_per_second:,.0f}"
        if figures.part_of_peak is not None:
            rest["of peak speed"] = f"{figures.part_of_peak * 100:.0f} %"
    cells += [([(label, "dim")], [_number(value)]) for label, value in rest.items()]
    cells.append(([("memory", "dim")], _memory(shown)))
    if figures and figures.gpu_utilization is not None:
        cells.append(([("GPU in use", "dim")], [_number(f"{figures.gpu_utilization * 100:.0f} %")]))
    return cells


def _train_loss(shown: Shown) -> Line:
    assert shown.figures is not None
    loss, trend = shown.figures.train_loss, shown.trend
    value = _number(show_loss(loss))
    if trend is None or not math.isfinite(trend):
        return [value]
    if trend == 0:
        return [value, ("  →", "dim"), (" steady", "dim")]
    arrow, style = ("↓", "green") if trend < 0 else ("↑", "yellow")
    return [value, (f"  {arrow}", style), (f" {show_loss(abs(trend))}", style)]


def _eval_loss(shown: Shown) -> Line:
    assert shown.evaluation is not None
    value = _number(show_loss(shown.evaluation[0]))
    if shown.is_best:
        return [value, ("  best", "green")]
    return [value, (f"  best {show_loss(shown.best[1])}", "green")] if shown.best else [value]


def _memory(shown: Shown) -> Line:
    used = shown.figures.memory_bytes if shown.figures else 0
    limit = (shown.figures and shown.figures.memory_limit_bytes) or shown.memory_limit_bytes
    value = f"{used / 2**30:.1f}" if shown.figures else "–"
    style = "yellow" if limit and used > _NEARLY_FULL * limit else ""
    return [(f"{value} of {limit / 2**30:.1f} GiB" if limit else f"{value} GiB", style)]


def _number(text: str) -> tuple[str, str]:
    return (text, "yellow" if text.lstrip("-") in {"nan", "inf"} else "")


def _grid(cells: Sequence[Figure], width: int) -> list[Line]:
    """Put figures in one, two or three columns, each filled downwards."""
    num_columns = 3 if width >= sum(_COLUMN_WIDTHS[3]) else 2 if width >= _PLOT_NEEDS_WIDTH - 4 else 1
    widths = list(_COLUMN_WIDTHS[num_columns])
    surplus = width - sum(widths)
    widths = [column + surplus // num_columns for column in widths] if surplus > 0 else widths
    widths[0] += min(surplus, 0)
    num_rows = math.ceil(len(cells) / num_columns)
    lines: list[Line] = []
    for row in range(num_rows):
        line: list[tuple[str, str]] = []
        for (label, value), cell_width in zip(cells[row::num_rows], widths, strict=False):
            line += [*_fit(label, _LABEL_WIDTH), *_fit_value(value, cell_width - _LABEL_WIDTH)]
        lines.append(line)
    return lines


def _fit_value(value: Line, width: int) -> Line:
    """Return a value and as much of what is said beside it as fits before the next column."""
    kept = list(value)
    while len(kept) > 1 and sum(len(text) for text, _ in kept) > width - 2:
        kept.pop()
    return _fit(kept, width)


def _fit(line: Line, width: int, *, pads: bool = True) -> Line:
    """Return a line of narrow characters cut to `width`, or filled up to it."""
    pieces: list[tuple[str, str]] = []
    room = max(width, 0)
    for text, style in line:
        pieces.append((text[:room], style))
        room -= len(pieces[-1][0])
    return [*pieces, (" " * room, "")] if pads else pieces
