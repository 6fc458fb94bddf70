"""Answers against expected ones: exact match, and whether the model stops by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamafarm.inference.generate import Answer


@dataclass(frozen=True, slots=True)
class AnswersResult:
    """Shares, from 0 to 1, of the answers that are the expected text, and that ended by themselves."""

    num_answers: int
    exact_match: float
    stop_rate: float


def score_answers(answers: Sequence[Answer], expected: Sequence[str]) -> AnswersResult:
    """Compare answers with expected texts, character by character but for blanks at either end."""
    pairs = list(zip(answers, expected, strict=True))
    return AnswersResult(
        num_answers=len(pairs),
        exact_match=_share([answer.text.strip() == text.strip() for answer, text in pairs]),
        stop_rate=_share([answer.stopped_by_itself for answer, _ in pairs]),
    )


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else 0.0
