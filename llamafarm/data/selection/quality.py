"""Rules for rows that teach something bad: each has a name and says what is wrong, and errs on keeping.

They look at answers and not at what the answers say, so that they hold in any language.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llamafarm.data.conversation import Conversation
from llamafarm.data.selection.oddities import HTML, TEXT_ODDITIES, WRONG_LETTERS, repeats_itself

if TYPE_CHECKING:
    from numpy.typing import NDArray

# An answer of fewer words may end as it likes: a name, a number, a list.
_FEWEST_WORDS_OF_A_SENTENCE = 8
# Rows of a file end properly, if so many of their longer answers do.
_USUAL = 0.9
_FEWEST_ANSWERS = 20

_PLACEHOLDERS = {"n/a", "todo", "tbd", "...", "…", "lorem ipsum", "[insert answer here]", "placeholder"}
_BREAKS_OFF = re.compile(r"[\w,;]$")


@dataclass(frozen=True, slots=True)
class QualityRule:
    """A rule: its name, what is wrong with the rows that it finds, and how an answer to a question breaks it.

    One that goes by habit only holds in files most of whose answers keep it.
    """

    name: str
    meaning: str
    is_broken: Callable[[str, str], bool]
    goes_by_habit: bool = False


def quality_bits(conversation: Conversation) -> int:
    """Return which rules a conversation breaks: bit n stands for entry n of `RULES`.

    Two more bits tell how its last answer ends, from which the habits of a file follow.
    """
    bits = 0
    question = ""
    for message in conversation.messages:
        answer = message.content.strip()
        if message.role == "assistant" and answer:
            for bit, rule in enumerate(RULES):
                if not bits >> bit & 1 and rule.is_broken(question, answer):
                    bits |= 1 << bit
        elif message.role == "user":
            question = f"{message.content} {message.input}".strip()
    last = conversation.messages[-1].content.strip()
    if len(last.split()) >= _FEWEST_WORDS_OF_A_SENTENCE:
        bits |= _ENDS_A_SENTENCE_BADLY if _BREAKS_OFF.search(last) else _ENDS_A_SENTENCE
    return bits


def first_broken_rules(quality_N: NDArray[np.uint16]) -> NDArray[np.int8]:
    """Return for each of a file's rows the place in `RULES` of the first that it breaks; -1 for none."""
    num_good = int((quality_N & _ENDS_A_SENTENCE > 0).sum())
    num_all = num_good + int((quality_N & _ENDS_A_SENTENCE_BADLY > 0).sum())
    has_habit = num_all >= _FEWEST_ANSWERS and num_good >= _USUAL * num_all
    first_N = np.full(len(quality_N), -1, np.int8)
    for place, rule in reversed(list(enumerate(RULES))):
        if has_habit or not rule.goes_by_habit:
            first_N[quality_N >> place & 1 > 0] = place
    return first_N


def _is_cut_off(_: str, answer: str) -> bool:
    is_sentence = len(answer.split()) >= _FEWEST_WORDS_OF_A_SENTENCE
    return is_sentence and bool(_BREAKS_OFF.search(answer))


def _has_html_left(question: str, answer: str) -> bool:
    is_wanted = "html" in question.casefold() or "```" in answer or TEXT_ODDITIES[HTML](question)
    return bool(TEXT_ODDITIES[HTML](answer)) and not is_wanted


def _repeats_question(question: str, answer: str) -> bool:
    return len(question.split()) > 1 and _plain(answer) == _plain(question)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


RULES: tuple[QualityRule, ...] = (
    QualityRule(
        "placeholder",
        "the answer only holds the place of one",
        lambda _, answer: answer.casefold() in _PLACEHOLDERS,
    ),
    QualityRule("repeats_question", "the answer is the question again", _repeats_question),
    QualityRule(
        "loop",
        "the answer says the same words again and again",
        lambda _, answer: repeats_itself(answer),
    ),
    QualityRule(
        "wrong_letters",
        "letters were decoded wrongly, as Ã© for é",
        lambda _, answer: bool(TEXT_ODDITIES[WRONG_LETTERS](answer)),
    ),
    QualityRule(
        "html_left",
        "HTML is left in the answer, and neither the question is about it nor is it in a block of code",
        _has_html_left,
    ),
    QualityRule(
        "cut_off",
        "the answer breaks off in a sentence, where nine of ten answers of the file end properly",
        _is_cut_off,
        goes_by_habit=True,
    ),
)
# Bits beyond those of the rules.
_ENDS_A_SENTENCE, _ENDS_A_SENTENCE_BADLY = 1 << 14, 1 << 15
