"""Line plots over optimizer steps, as SVG made by ourselves.

A plotting library fixes its colours when it draws; these take theirs from the page's style, so that they
follow the reader's light or dark and go grey on paper. They hold no script: hovering shows `<title>`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

from llamafarm.report.facts.wording import show_count, show_number
from llamafarm.report.scales import Scale, make_scale, show_ticks, spans_widely, step_scale

_TOP, _RIGHT, _BOTTOM = 26.0, 12.0, 42.0
_LETTER = 7.4
# Figures beyond these are no curve any more, and their powers overflow.
_LARGEST = 1e100


@dataclass(frozen=True, slots=True)
class Series:
    """A curve; None is a gap. `faint` is behind others, `points` marks each figure; `color` is 1 to 8."""

    name: str
    steps: Sequence[int]
    values: Sequence[float | None]
    kind: Literal["line", "faint", "points"] = "line"
    color: int = 1


@dataclass(frozen=True, slots=True)
class Marker:
    """A step worth showing: a `line` with its label, or a `finding` above the plot."""

    step: int
    label: str
    title: str
    kind: Literal["line", "finding"] = "line"


@dataclass(frozen=True, slots=True)
class Plot:
    """What is drawn. `unit` names the upright axis; `level` is a height to compare with, and its name."""

    title: str
    unit: str
    series: tuple[Series, ...]
    markers: tuple[Marker, ...] = ()
    from_zero: bool = False
    may_be_log: bool = False
    level: tuple[float, str] | None = None

    @property
    def is_log(self) -> bool:
        """Return whether the figures call for a logarithmic scale, and may have one."""
        return self.may_be_log and spans_widely(value for _, value in _all_points(self.series))

    @property
    def is_empty(self) -> bool:
        """Return whether there is nothing to draw."""
        return not any(value is not None for _, value in _all_points(self.series))

    @property
    def summary(self) -> str:
        """Return the curves in words, for those who do not see them."""
        return f"{self.title}: " + "; ".join(filter(None, map(_summarise, self.series)))


@dataclass(frozen=True, slots=True)
class _Frame:
    """The room that the curves have, and the two scales."""

    width: float
    height: float
    left: float
    x: Scale
    y: Scale

    @property
    def right(self) -> float:
        return self.width - _RIGHT

    @property
    def bottom(self) -> float:
        return self.height - _BOTTOM

    def place_step(self, step: float) -> float:
        return self.left + self.x.place(step) * (self.right - self.left)

    def place_value(self, value: float) -> float:
        return self.bottom - self.y.place(value) * (self.bottom - _TOP)


def draw_plot(plot: Plot, width: int, height: int) -> Markup:
    """Return a plot as SVG that scales with the page; its text is as large as that of a page `width` wide."""
    frame = _make_frame(plot, width, height)
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(plot.summary)}">',
        *_draw_grid(plot, frame),
        *_draw_markers(plot.markers, frame),
    ]
    for series in plot.series:
        parts += _draw_series(series, frame)
    parts += _draw_hover(plot.series, frame)
    return Markup("".join([*parts, "</svg>"]))  # noqa: S704 - every text in it is escaped where it enters


def thin_out(points: Sequence[tuple[int, float | None]], num_buckets: int) -> list[list[tuple[int, float]]]:
    """Return stretches of points without gaps; of each bucket of many steps, the least and the largest."""
    if not points:
        return []
    first, last = points[0][0], points[-1][0]
    is_long = len(points) > 2 * num_buckets
    per_step = num_buckets / max(last - first, 1)
    stretches: list[list[tuple[int, float]]] = []
    bucket: list[tuple[int, float]] = []
    is_open, place = False, -1
    for step, value in points:
        here = int((step - first) * per_step) if is_long else step
        if bucket and (value is None or here != place):
            stretches[-1].extend(_extremes(bucket))
            bucket = []
        if value is None:
            is_open = False
            continue
        if not is_open:
            stretches.append([])
            is_open = True
        place = here
        bucket.append((step, value))
    if bucket:
        stretches[-1].extend(_extremes(bucket))
    return stretches


def _extremes(bucket: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return first, least, largest and last of a bucket, in the order of their steps."""
    ends = {bucket[0], bucket[-1]}
    return sorted(ends | {min(bucket, key=lambda at: at[1]), max(bucket, key=lambda at: at[1])})


def _points_of(series: Series) -> list[tuple[int, float | None]]:
    pairs = zip(series.steps, series.values, strict=True)
    return [(step, value if value is None or abs(value) < _LARGEST else None) for step, value in pairs]


def _all_points(several: Sequence[Series]) -> list[tuple[int, float | None]]:
    return [point for series in several for point in _points_of(series)]


def _make_frame(plot: Plot, width: int, height: int) -> _Frame:
    points = _all_points(plot.series)
    values = [value for _, value in points]
    levels = [plot.level[0]] if plot.level else []
    # Tiny positive figures on a logarithmic scale would stretch it over a hundred decades.
    is_log = plot.is_log and min(value for value in values if value is not None) > 1 / _LARGEST
    y = make_scale([*values, *levels], is_log=is_log, from_zero=plot.from_zero)
    steps = [step for step, value in points if value is not None]
    x = step_scale(min(steps, default=0), max(steps, default=1), 8 if width > 600 else 4)
    left = 10 + _LETTER * max(map(len, show_ticks(y.ticks)), default=1)
    return _Frame(width, height, left, x, y)


def _draw_grid(plot: Plot, frame: _Frame) -> Iterator[str]:
    labels = show_ticks(frame.y.ticks)
    for tick, label in zip(frame.y.ticks, labels, strict=True):
        y = frame.place_value(tick)
        yield f'<path class="grid" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>'
        yield f'<text class="tick end" x="{frame.left - 7:.1f}" y="{y + 4:.1f}">{escape(label)}</text>'
    for tick in frame.x.ticks:
        x = frame.place_step(tick)
        anchor = " end" if x > frame.right - 14 else " middle"
        yield f'<path class="axis" d="M{x:.1f} {frame.bottom:.1f}v4"/>'
        yield (
            f'<text class="tick{anchor}" x="{x:.1f}" y="{frame.bottom + 17:.1f}">{show_count(tick)}</text>'
        )
    yield f'<path class="axis" d="M{frame.left:.1f} {frame.bottom:.1f}H{frame.right:.1f}"/>'
    unit = f"{plot.unit}, logarithmic" if frame.y.is_log else plot.unit
    # The name of the level stands here: beside its line it would lie on the curve.
    unit += f" (dotted: {plot.level[1]})" if plot.level else ""
    yield f'<text class="name" x="2" y="12">{escape(unit)}</text>'
    yield (f'<text class="name end" x="{frame.right:.1f}" y="{frame.height - 6:.1f}">optimizer step</text>')
    if plot.level and frame.y.shows(plot.level[0]):
        y = frame.place_value(plot.level[0])
        yield f'<path class="level" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>'


def _draw_markers(markers: Sequence[Marker], frame: _Frame) -> Iterator[str]:
    for marker in markers:
        if not frame.x.low <= marker.step <= frame.x.high:
            continue
        x = frame.place_step(marker.step)
        title = f"<title>{escape(marker.title)}</title>"
        if marker.kind == "finding":
            y = _TOP - 1
            yield f'<path class="flag" d="M{x:.1f} {y:.1f}l-5 -9h10z">{title}</path>'
            continue
        is_late = x > frame.right - _LETTER * len(marker.label) - 8
        at, anchor = (x - 5, " end") if is_late else (x + 5, "")
        yield f'<path class="mark" d="M{x:.1f} {_TOP:.1f}V{frame.bottom:.1f}">{title}</path>'
        yield f'<text class="tick{anchor}" x="{at:.1f}" y="{_TOP + 11:.1f}">{escape(marker.label)}</text>'


def _draw_series(series: Series, frame: _Frame) -> Iterator[str]:
    shown = [(step, value if frame.y.shows(value) else None) for step, value in _points_of(series)]
    style = f"curve {series.kind} c{(series.color - 1) % 8 + 1}"
    if series.kind == "points":
        # Evaluations lie far apart: those between which steps were only trained are one curve.
        shown = [point for point in shown if point[1] is not None]
    stretches = thin_out(shown, max(60, int(frame.right - frame.left) // 2))
    path, dots = [], []
    for stretch in stretches:
        places = [(frame.place_step(step), frame.place_value(value)) for step, value in stretch]
        path.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places))
        if series.kind == "points" or len(places) == 1:
            dots += places
    if path:
        yield f'<path class="{style}" d="{"".join(path)}"/>'
    radius = 3.5 if series.kind == "points" and len(dots) <= 60 else 2
    for x, y in dots:
        yield f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def _draw_hover(several: Sequence[Series], frame: _Frame) -> Iterator[str]:
    """Yield invisible bands over the plot, each with the figures of a step in it."""
    by_step: dict[int, list[str]] = {}
    for series in several:
        for step, value in _points_of(series):
            if value is not None:
                by_step.setdefault(step, []).append(f"{series.name} {show_number(value)}")
    num_bands = int(frame.right - frame.left) // 8
    bands: dict[int, int] = {}
    for step, texts in sorted(by_step.items()):
        band = min(int(frame.x.place(step) * num_bands), num_bands - 1)
        # A step that every curve has is worth more than one that only some have.
        if band not in bands or len(texts) > len(by_step[bands[band]]):
            bands[band] = step
    width = (frame.right - frame.left) / num_bands
    for band, step in bands.items():
        title = escape("\n".join([f"step {show_count(step)}", *by_step[step]]))
        yield (
            f'<rect class="hover" x="{frame.left + band * width:.1f}" y="{_TOP:.0f}" width="{width:.1f}" '
            f'height="{frame.bottom - _TOP:.0f}"><title>{title}</title></rect>'
        )


def _summarise(series: Series) -> str:
    if series.kind == "faint":
        return ""
    points = [(step, value) for step, value in _points_of(series) if value is not None]
    if not points:
        return ""
    (first, start), (last, end) = points[0], points[-1]
    return (
        f"{series.name} from {show_number(start)} at step {show_count(first)} to {show_number(end)} at step "
        f"{show_count(last)}"
    )
