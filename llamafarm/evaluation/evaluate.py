"""Measure a model on held-out rows, its base beside it, and say what is sure of the difference."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llamafarm.data.conversation import Conversation
from llamafarm.evaluation.answers import PER_ANSWER
from llamafarm.evaluation.bootstrap import Interval, mean_interval, ratio_interval
from llamafarm.evaluation.loss import RowLosses
from llamafarm.evaluation.measure import Measured, Questions, measure_model, prepare_questions
from llamafarm.evaluation.repetition import is_loop
from llamafarm.findings.answers import AnswerFigures, find_in_answers
from llamafarm.findings.finding import Finding
from llamafarm.inference.open import OpenModel

BASE, TUNED = "base", "tuned"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of measuring: the models' figures, base first where there is one.

    `changes` has, under the name of each figure, tuned less base with its interval; `findings` what is wrong
    with the tuned model.
    """

    questions: Questions
    measured: tuple[Measured, ...]
    changes: dict[str, Interval] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def as_record(self, num_answers: int | None = None) -> dict[str, Any]:
        """Return it as it goes into JSON, with the first `num_answers` answers, or all."""
        return {
            "num_left_out": self.questions.num_left_out,
            "models": [one.as_record() for one in self.measured],
            "changes": {name: asdict(interval) for name, interval in self.changes.items()},
            "findings": [finding.as_record() for finding in self.findings],
            "answers": [self._answer_record(place) for place in range(self.num_answers)[:num_answers]],
        }

    @property
    def num_answers(self) -> int:
        """Return how many rows were answered."""
        return len(self.questions.asked)

    def _answer_record(self, place: int) -> dict[str, Any]:
        turns = self.questions.conversations[self.questions.asked[place]].messages
        return {
            "row": self.questions.conversations[self.questions.asked[place]].row_number,
            "prompt": "\n".join(filter(None, (turns[-2].content, turns[-2].input))),
            "expected": self.questions.expected[place],
            **{
                one.name: {"text": one.answers[place].text, "ended_by": one.answers[place].ended_by}
                for one in self.measured
            },
        }


def evaluate_model(
    opened: OpenModel,
    conversations: Sequence[Conversation],
    where: str,
    general: Sequence[Conversation] = (),
    *,
    with_base: bool = True,
    tuned_name: str = TUNED,
    known: Collection[str] = (),
) -> Evaluation:
    """Return what the tuned model, and the base beside it, do on the rows; of a base alone what it does.

    `known` names findings of the run that made the model, which are not explained by its answers again.
    Raises `DataError` if no row fits the model.
    """
    questions = prepare_questions(opened, conversations, where)
    if not opened.is_tuned:
        return Evaluation(questions, (measure_model(opened, BASE, questions, general),))
    tuned = measure_model(opened, tuned_name, questions, general)
    if not with_base:
        return Evaluation(questions, (tuned,), findings=_find(opened, questions, None, tuned, {}, known))
    with opened.base_beside() as base_model:
        base = measure_model(base_model, BASE, questions, general)
    changes = compare(base, tuned)
    found = _find(opened, questions, base, tuned, changes, known)
    return Evaluation(questions, (base, tuned), changes, found)


def compare(base: Measured, tuned: Measured) -> dict[str, Interval]:
    """Return what changed from base to tuned, row by row, of every figure that both have."""
    changes = {"eval_loss": _loss_change(base.losses, tuned.losses)}
    if base.scores.num_answers:
        for name in PER_ANSWER:
            changes[name] = mean_interval(tuned.scores.per_answer[name] - base.scores.per_answer[name])
    if base.general is not None and tuned.general is not None:
        changes["general_loss"] = _loss_change(base.general, tuned.general)
    return changes


def _loss_change(base: RowLosses, tuned: RowLosses) -> Interval:
    return ratio_interval(tuned.loss_sum_N - base.loss_sum_N, base.num_tokens_N.astype(float))


def _find(
    opened: OpenModel,
    questions: Questions,
    base: Measured | None,
    tuned: Measured,
    changes: Mapping[str, Interval],
    known: Collection[str],
) -> tuple[Finding, ...]:
    scores = tuned.scores
    figures = AnswerFigures(
        num_answers=scores.num_answers,
        num_loops=int(scores.per_answer["loop_rate"].sum()),
        num_expected_loops=sum(map(is_loop, questions.expected)),
        num_base_loops=int(base.scores.per_answer["loop_rate"].sum()) if base else 0,
        num_fitting=scores.num_fitting,
        num_cut=scores.num_cut,
        max_new_tokens=opened.settings.max_new_tokens,
        loss=tuned.losses.total.loss,
        base_loss=base.losses.total.loss if base else None,
        is_worse_than_base="eval_loss" in changes and changes["eval_loss"].is_above_zero,
        general_loss=tuned.general.total.loss if tuned.general else None,
        base_general_loss=base.general.total.loss if base and base.general else None,
        uniform_loss=math.log(max(len(opened.tokenizer), 2)),
        is_general_rise_sure="general_loss" in changes and changes["general_loss"].is_above_zero,
    )
    return tuple(find_in_answers(figures, known))
