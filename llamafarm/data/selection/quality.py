"""Rules for rows that teach something bad: each has a name and says what is wrong, and errs on keeping.

They look at answers and not at what the answers say, so that they hold in any language.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamafarm.data.conversation import Conversation
from llamafarm.data.selection.oddities import HTML, TEXT_ODDITIES, WRONG_LETTERS, repeats_itself

_MOST_ROWS_NAMED = 5
# An answer of fewer words may end as it likes: a name, a number, a list.
_FEWEST_WORDS_OF_A_SENTENCE = 8
# Rows of a file end properly, if so many of their longer answers do.
_USUAL = 0.9
_FEWEST_ANSWERS = 20

_PLACEHOLDERS = {"n/a", "todo", "tbd", "...", "…", "lorem ipsum", "[insert answer here]", "placeholder"}
_BREAKS_OFF = re.compile(r"[\w,;]$")


@dataclass(frozen=True, slots=True)
class FileHabits:
    """What the answers of a file have in common; rows are judged by it."""

    answers_end_properly: bool


@dataclass(frozen=True, slots=True)
class QualityRule:
    """A rule: its name, what is wrong with the rows that it finds, and how it finds them."""

    name: str
    meaning: str
    is_broken: Callable[[str, str, FileHabits], bool]


@dataclass(frozen=True, slots=True)
class Removed:
    """The rows that a rule removed."""

    rule: QualityRule
    row_numbers: tuple[int, ...]

    def __str__(self) -> str:
        """Say how many there are, which, and why."""
        shown = ", ".join(map(str, self.row_numbers[:_MOST_ROWS_NAMED]))
        more = ", …" if len(self.row_numbers) > _MOST_ROWS_NAMED else ""
        number = len(self.row_numbers)
        return f"{number} rows are left out ({self.rule.name}): {self.rule.meaning} (rows {shown}{more})"


def filter_quality(
    conversations: Sequence[Conversation],
) -> tuple[list[Conversation], list[Removed]]:
    """Return the rows that keep every rule, and what each removed; a row counts for the first it breaks."""
    habits = _habits_of(conversations)
    kept = []
    removed: dict[str, list[int]] = {}
    for conversation in conversations:
        broken = next((rule for rule in RULES if _breaks(conversation, rule, habits)), None)
        if broken is None:
            kept.append(conversation)
        else:
            removed.setdefault(broken.name, []).append(conversation.row_number)
    return kept, [Removed(rule, tuple(removed[rule.name])) for rule in RULES if rule.name in removed]


def _breaks(conversation: Conversation, rule: QualityRule, habits: FileHabits) -> bool:
    question = ""
    for message in conversation.messages:
        if message.role == "assistant" and message.content.strip():
            if rule.is_broken(question, message.content.strip(), habits):
                return True
        elif message.role == "user":
            question = f"{message.content} {message.input}".strip()
    return False


def _habits_of(conversations: Sequence[Conversation]) -> FileHabits:
    ends = [
        not _BREAKS_OFF.search(answer)
        for conversation in conversations
        if len((answer := conversation.messages[-1].content.strip()).split()) >= _FEWEST_WORDS_OF_A_SENTENCE
    ]
    return FileHabits(len(ends) >= _FEWEST_ANSWERS and sum(ends) >= _USUAL * len(ends))


def _is_cut_off(_: str, answer: str, habits: FileHabits) -> bool:
    is_sentence = len(answer.split()) >= _FEWEST_WORDS_OF_A_SENTENCE
    return habits.answers_end_properly and is_sentence and bool(_BREAKS_OFF.search(answer))


def _has_html_left(question: str, answer: str) -> bool:
    is_wanted = "html" in question.casefold() or "```" in answer or TEXT_ODDITIES[HTML](question)
    return bool(TEXT_ODDITIES[HTML](answer)) and not is_wanted


def _repeats_question(question: str, answer: str, _: FileHabits) -> bool:
    return len(question.split()) > 1 and _plain(answer) == _plain(question)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s]", " ", text.casefold()).split())


RULES: tuple[QualityRule, ...] = (
    QualityRule(
        "placeholder",
        "the answer only holds the place of one",
        lambda _, answer, __: answer.casefold() in _PLACEHOLDERS,
    ),
    QualityRule("repeats_question", "the answer is the question again", _repeats_question),
    QualityRule(
        "loop",
        "the answer says the same words again and again",
        lambda _, answer, __: repeats_itself(answer),
    ),
    QualityRule(
        "wrong_letters",
        "letters were decoded wrongly, as Ã© for é",
        lambda _, answer, __: bool(TEXT_ODDITIES[WRONG_LETTERS](answer)),
    ),
    QualityRule(
        "html_left",
        "HTML is left in the answer, and neither the question is about it nor is it in a block of code",
        lambda question, answer, _: _has_html_left(question, answer),
    ),
    QualityRule(
        "cut_off",
        "the answer breaks off in a sentence, where nine of ten answers of the file end properly",
        _is_cut_off,
    ),
)
