"""Answers against expected ones, row by row, and what they come to. Axis: N, answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llamafarm.evaluation.repetition import distinct_share, is_loop
from llamafarm.evaluation.texts import chrf, corpus_bleu, rouge_l, token_f1
from llamafarm.inference.generate import Answer

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What each answer has a figure for, as it is called in records. For the first four more is better.
PER_ANSWER = ("exact_match", "token_f1", "rouge_l", "chrf", "stop_rate", "loop_rate")


@dataclass(frozen=True, slots=True, eq=False)
class AnswerScores:
    """Figures of answers: of each by itself under the names of `PER_ANSWER`, from 0 to 1, and of all.

    `num_cut` counts those that ended at `max_new_tokens` without being caught in a loop, though the expected
    answer has room there; `num_fitting` are the answers that have.
    """

    per_answer: dict[str, NDArray[np.float64]]
    bleu: float
    distinct_1: float
    distinct_2: float
    mean_tokens: float
    mean_expected_tokens: float
    num_cut: int
    num_fitting: int

    @property
    def num_answers(self) -> int:
        """Return how many answers there are."""
        return len(self.per_answer["exact_match"])

    def mean(self, name: str) -> float:
        """Return the mean of a figure; 0 without answers."""
        return float(self.per_answer[name].mean()) if self.num_answers else 0.0

    def as_record(self) -> dict[str, float | int]:
        """Return the figures as they go into JSON."""
        return {
            "rows": self.num_answers,
            **{name: self.mean(name) for name in PER_ANSWER},
            "bleu": self.bleu,
            "distinct_1": self.distinct_1,
            "distinct_2": self.distinct_2,
            "mean_tokens": self.mean_tokens,
            "mean_expected_tokens": self.mean_expected_tokens,
        }


def score_answers(
    answers: Sequence[Answer],
    expected: Sequence[str],
    num_expected_tokens: Sequence[int],
    max_new_tokens: int,
) -> AnswerScores:
    """Compare answers with expected texts; blanks at either end count for nothing."""
    texts = [answer.text.strip() for answer in answers]
    wanted = [text.strip() for text in expected]
    pairs = list(zip(texts, wanted, strict=True))
    loops_N = np.array([is_loop(text) for text in texts], np.float64)
    is_cut_N = np.array([answer.ended_by == "max-new-tokens" for answer in answers], bool)
    is_fitting_N = np.array(num_expected_tokens, np.int64) < max_new_tokens
    per_answer = {
        "exact_match": [answer == want for answer, want in pairs],
        "token_f1": [token_f1(*pair) for pair in pairs],
        "rouge_l": [rouge_l(*pair) for pair in pairs],
        "chrf": [chrf(*pair) for pair in pairs],
        "stop_rate": [answer.stopped_by_itself for answer in answers],
        "loop_rate": loops_N,
    }
    return AnswerScores(
        per_answer={name: np.asarray(values, np.float64) for name, values in per_answer.items()},
        bleu=corpus_bleu(texts, wanted),
        distinct_1=distinct_share(texts, 1),
        distinct_2=distinct_share(texts, 2),
        mean_tokens=_mean([answer.num_tokens for answer in answers]),
        mean_expected_tokens=_mean(num_expected_tokens),
        num_cut=int((is_cut_N & is_fitting_N & (loops_N == 0)).sum()) if answers else 0,
        num_fitting=int(is_fitting_N.sum()),
    )


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0
