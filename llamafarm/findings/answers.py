"""What a tuned model's answers show beside the expected ones and its base's."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from llamafarm.findings.finding import Finding

# A run that went wrong as a whole gives bad answers of every kind.
_EXPLAIN_ALL = ("learning-rate-too-high", "divergence")
_EXPLAIN_WORSE = ("memorised", "evaluation-degradation", "overfitting-gap", "evaluation-drift")
_FEWEST_ANSWERS = 4
_MOST_LOOPS = 0.1
_MOST_CUT = 0.25
# In nats per token, and as a part of the base's: what the loss on general text may rise by.
_MOST_FORGOTTEN, _MOST_FORGOTTEN_PART = 0.3, 0.1
# A base that hardly does better on a text than guessing has nothing to forget of it.
_MOST_KNOWN = 0.7


@dataclass(frozen=True, slots=True)
class AnswerFigures:
    """Figures of a tuned model's answers.

    `num_cut` counts answers that ended at `max_new_tokens` without a loop, though the expected one has room
    there; `num_fitting` are the rows whose expected answer has. General losses are None where none was
    measured; `is_general_rise_sure` tells whether the interval of their difference is above 0, and so on for
    the held-out rows. `uniform_loss` is that of taking any token of the vocabulary.
    """

    num_answers: int
    num_loops: int
    num_expected_loops: int
    num_base_loops: int
    num_fitting: int
    num_cut: int
    max_new_tokens: int
    loss: float | None = None
    base_loss: float | None = None
    is_worse_than_base: bool = False
    general_loss: float | None = None
    base_general_loss: float | None = None
    is_general_rise_sure: bool = False
    uniform_loss: float = math.inf


def find_in_answers(figures: AnswerFigures, known: Collection[str] = ()) -> list[Finding]:
    """Return what is wrong with the answers; not what findings that are `known` of the run explain."""
    if any(name in _EXPLAIN_ALL for name in known):
        return []
    found = (_find_loops(figures), _find_endless(figures), _find_forgotten(figures), _find_worse(figures))
    is_explained = any(name in _EXPLAIN_WORSE for name in known)
    return [one for one in found if one is not None and not (is_explained and one.name == "worse-than-base")]


def _find_loops(figures: AnswerFigures) -> Finding | None:
    part = (figures.num_loops - figures.num_expected_loops) / max(figures.num_answers, 1)
    if figures.num_answers < _FEWEST_ANSWERS or part < _MOST_LOOPS:
        return None
    return Finding(
        "repetitive-output",
        "warning",
        f"{figures.num_loops} of {figures.num_answers} answers repeat a phrase over and over (base: "
        f"{figures.num_base_loops})",
        "The model is caught in loops, the guide's fourth sign of overfitting",
        "a lower training_args.learning_rate or fewer num_train_epochs; generation.repetition_penalty: 1.1 "
        "hides it meanwhile",
    )


def _find_endless(figures: AnswerFigures) -> Finding | None:
    part = figures.num_cut / max(figures.num_fitting, 1)
    if figures.num_fitting < _FEWEST_ANSWERS or part < _MOST_CUT:
        return None
    return Finding(
        "never-stops",
        "warning",
        f"{figures.num_cut} of {figures.num_fitting} answers went on to generation.max_new_tokens "
        f"({figures.max_new_tokens}), though the expected ones end before",
        "The model has not learnt where an answer ends",
        "more training (num_train_epochs, learning_rate); check with `data preview` that the end-of-turn "
        "token is marked as trained on",
    )


def _find_forgotten(figures: AnswerFigures) -> Finding | None:
    if figures.general_loss is None or figures.base_general_loss is None:
        return None
    rise = figures.general_loss - figures.base_general_loss
    most = max(_MOST_FORGOTTEN, _MOST_FORGOTTEN_PART * figures.base_general_loss)
    is_known_to_base = figures.base_general_loss < _MOST_KNOWN * figures.uniform_loss
    if not figures.is_general_rise_sure or rise < most or not is_known_to_base:
        return None
    return Finding(
        "forgot",
        "warning",
        f"the loss on general text rose from {figures.base_general_loss:.3f} to {figures.general_loss:.3f}",
        "The model lost much of what the base knew",
        "a lower method.r, fewer method.target_modules, a lower training_args.learning_rate, or general rows "
        "mixed into dataset.train_file",
    )


def _find_worse(figures: AnswerFigures) -> Finding | None:
    if not figures.is_worse_than_base or figures.loss is None or figures.base_loss is None:
        return None
    return Finding(
        "worse-than-base",
        "warning",
        f"eval_loss is {figures.loss:.3f}, and the base's {figures.base_loss:.3f}",
        "On these rows the training made the model worse",
        "a lower training_args.learning_rate or fewer num_train_epochs; check that these rows are of the "
        "kind that was trained on",
    )
