"""The table of an evaluation: each figure of base and tuned, what changed, and whether that is sure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from llamafarm.report.facts.wording import (
    UNKNOWN,
    show_count,
    show_loss,
    show_number,
    show_share,
    show_signed,
)
from llamafarm.report.reading.answers import Change, EvaluationRecord

Tone = Literal["good", "bad", "unsure", "none"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure: what it is called and measures, whether more is better (1), less (-1), or neither (0)."""

    name: str
    meaning: str
    better: int
    show: Callable[[float | None], str]


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A line of the table, as texts; `tone` is what the change says, `none` where nothing was compared."""

    metric: Metric
    base: str
    tuned: str
    change: str
    interval: str
    tone: Tone
    verdict: str


def _show_part(value: float | None) -> str:
    return show_share(value, 1)


def _show_words(value: float | None) -> str:
    return show_number(value, 3)


METRICS = (
    Metric("eval_loss", "nats per token of the expected answers", -1, show_loss),
    Metric("eval_perplexity", "e to that; below 50 is good, above 100 points to problems", -1, show_loss),
    Metric("eval_loss_per_row", "the same, each row counting alike", -1, show_loss),
    Metric("exact_match", "answers that are the expected one", 1, _show_part),
    Metric("token_f1", "words shared with the expected answer", 1, _show_part),
    Metric("rouge_l", "longest common sequence of words", 1, _show_part),
    Metric("chrf", "shared stretches of characters", 1, _show_part),
    Metric("bleu", "shared phrases of up to four words, over all answers", 1, _show_words),
    Metric("stop_rate", "answers that end by themselves", 1, _show_part),
    Metric("loop_rate", "answers caught in a repetition", -1, _show_part),
    Metric("general_loss", "nats per token of general text: what was forgotten", -1, show_loss),
    Metric("distinct_1", "different words among all", 0, _show_part),
    Metric("distinct_2", "different pairs of words among all", 0, _show_part),
    Metric("mean_tokens", "length of an answer in tokens", 0, _show_words),
    Metric("mean_expected_tokens", "length of an expected answer in tokens", 0, _show_words),
    Metric("answer_tokens_per_second", "how fast the answers came", 0, show_count),
)


def metric_rows(evaluation: EvaluationRecord | None) -> list[MetricRow]:
    """Return the table, only the figures that were measured."""
    if evaluation is None:
        return []
    base = evaluation.base.figures if evaluation.base else {}
    tuned = evaluation.tuned.figures if evaluation.tuned else {}
    rows = []
    for metric in METRICS:
        if metric.name not in base and metric.name not in tuned:
            continue
        change = evaluation.changes.get(metric.name)
        tone, verdict = _judge(change, metric)
        rows.append(
            MetricRow(
                metric,
                metric.show(base.get(metric.name)),
                metric.show(tuned.get(metric.name)),
                _show_change(change, metric),
                show_interval(change, metric),
                tone,
                verdict,
            )
        )
    return rows


def show_interval(change: Change | None, metric: Metric) -> str:
    """Return an interval as `−1.20 … −0.95`."""
    if change is None or change.low is None or change.high is None:
        return UNKNOWN
    return f"{_show_difference(change.low, metric)} … {_show_difference(change.high, metric)}"


def _show_change(change: Change | None, metric: Metric) -> str:
    return UNKNOWN if change is None else _show_difference(change.estimate, metric)


def _show_difference(value: float, metric: Metric) -> str:
    """Return a difference; of parts in percentage points."""
    return show_signed(100 * value, 1) if metric.show is _show_part else show_signed(value)


def _judge(change: Change | None, metric: Metric) -> tuple[Tone, str]:
    if change is None or not metric.better:
        return "none", ""
    if change.low is None or change.high is None:
        return "unsure", "too few rows"
    if change.low == change.high == 0:
        return "unsure", "the same"
    if not change.is_sure:
        return "unsure", "not sure"
    return ("good", "better") if (change.low > 0) == (metric.better > 0) else ("bad", "worse")
