"""`evaluation.json`, read: the models' figures, what changed from base to tuned, and the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llamafarm.findings.finding import Finding
from llamafarm.report.reading.values import brief_of, count_of, list_of, mapping_of, number_of, text_of

# As `evaluation.record` and `evaluation.evaluate` name them, which load torch.
EVALUATION_FILE = "evaluation.json"
BASE = "base"


@dataclass(frozen=True, slots=True)
class Change:
    """Tuned less base, with the interval that it lies in 19 times of 20; None where rows were too few."""

    estimate: float
    low: float | None
    high: float | None

    @property
    def is_sure(self) -> bool:
        """Return whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """A model's name and its figures."""

    name: str
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Said:
    """An answer, and what ended it."""

    text: str
    ended_by: str | None


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """A held-out row: what was asked and expected, and what the models that were asked said."""

    row: int | None
    prompt: str
    expected: str
    base: Said | None
    tuned: Said | None


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """What came of measuring. `base` or `tuned` is None where it was not measured.

    Without `is_held_out` the rows were trained on: they say how well they are known by heart.
    """

    base: ModelFigures | None
    tuned: ModelFigures | None
    changes: Mapping[str, Change]
    findings: tuple[Finding, ...]
    answers: tuple[AnsweredRow, ...]
    file: str | None
    sha256: str | None
    is_held_out: bool
    general: str | None
    num_general_words: int | None
    num_left_out: int
    max_new_tokens: int | None
    created: str | None

    @property
    def num_rows(self) -> int:
        """Return how many rows were answered."""
        models = [model for model in (self.tuned, self.base) if model]
        return int(models[0].figures.get("rows", 0)) if models else 0


def read_evaluation(record: Mapping[str, Any]) -> EvaluationRecord | None:
    """Return the record, None if no model was measured."""
    models = list(_read_models(record))
    if not models:
        return None
    general = mapping_of(record.get("general"))
    base = next((model for model in models if model.name == BASE), None)
    tuned = next((model for model in reversed(models) if model.name != BASE), None)
    return EvaluationRecord(
        base=base,
        tuned=tuned,
        changes=dict(_read_changes(record)),
        findings=tuple(read_findings(record.get("findings"))),
        answers=tuple(_read_answers(record, tuned.name if tuned else "tuned")),
        file=brief_of(record.get("file")),
        sha256=brief_of(record.get("sha256")),
        is_held_out=record.get("is_held_out", True) is True,
        general=brief_of(general.get("name")),
        num_general_words=count_of(general.get("num_words")),
        num_left_out=count_of(record.get("num_left_out")) or 0,
        max_new_tokens=count_of(record.get("max_new_tokens")),
        created=brief_of(record.get("created")),
    )


def read_findings(value: Any) -> Iterator[Finding]:
    """Yield the findings of a list in JSON; what has no name or nothing seen is passed over."""
    for record in map(mapping_of, list_of(value)):
        name, seen = brief_of(record.get("name")), brief_of(record.get("seen"))
        if name is not None and seen is not None:
            yield Finding(
                name,
                "warning" if record.get("level") == "warning" else "note",
                seen,
                brief_of(record.get("meaning")) or "",
                brief_of(record.get("remedy")) or "",
                count_of(record.get("step")),
            )


def _read_models(record: Mapping[str, Any]) -> Iterator[ModelFigures]:
    for model in map(mapping_of, list_of(record.get("models"))):
        name = brief_of(model.get("name"))
        if name:
            found = {key: number_of(value) for key, value in model.items()}
            yield ModelFigures(name, {key: number for key, number in found.items() if number is not None})


def _read_changes(record: Mapping[str, Any]) -> Iterator[tuple[str, Change]]:
    for name, value in mapping_of(record.get("changes")).items():
        interval = mapping_of(value)
        estimate = number_of(interval.get("estimate"))
        if estimate is not None:
            yield name, Change(estimate, number_of(interval.get("low")), number_of(interval.get("high")))


def _read_answers(record: Mapping[str, Any], tuned_name: str) -> Iterator[AnsweredRow]:
    for answer in map(mapping_of, list_of(record.get("answers"))):
        yield AnsweredRow(
            row=count_of(answer.get("row")),
            prompt=text_of(answer.get("prompt")) or "",
            expected=text_of(answer.get("expected")) or "",
            base=_read_said(answer.get(BASE)),
            tuned=_read_said(answer.get(tuned_name)),
        )


def _read_said(value: Any) -> Said | None:
    text = text_of(mapping_of(value).get("text"))
    return None if text is None else Said(text, brief_of(mapping_of(value).get("ended_by")))
