"""One model on some rows: its losses, its answers with their scores, its loss on general text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from llamafarm import terminal
from llamafarm.data.conversation import Conversation
from llamafarm.data.encoding.encode import encode_separately
from llamafarm.data.encoding.fitting import Limits
from llamafarm.data.encoding.pack import pack_rows
from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.errors import DataError
from llamafarm.evaluation.answers import AnswerScores, score_answers
from llamafarm.evaluation.loss import RowLosses, measure_losses
from llamafarm.inference.generate import Answer
from llamafarm.inference.open import OpenModel
from llamafarm.model.forward import packed_forward
from llamafarm.model.load import text_encoder
from llamafarm.planning.packs import choose_pack_tokens


@dataclass(frozen=True, slots=True)
class Questions:
    """Rows that fit a model, as tokens and as turns.

    `conversations` are all of them, `rows` what they became, each of the conversation that `owner_of_row`
    says; `asked` are the places of those that have an answer: plain text has none.
    """

    conversations: tuple[Conversation, ...]
    rows: tuple[EncodedRow, ...]
    owner_of_row: tuple[int, ...]
    asked: tuple[int, ...]
    expected: tuple[str, ...]
    num_expected_tokens: tuple[int, ...]
    num_left_out: int


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One model's figures. `general` is None where no general text was given."""

    name: str
    losses: RowLosses
    scores: AnswerScores
    answers: tuple[Answer, ...]
    general: RowLosses | None
    answer_seconds: float

    def as_record(self) -> dict[str, Any]:
        """Return the figures as they go into JSON."""
        total = self.losses.total
        record: dict[str, Any] = {
            "name": self.name,
            "eval_loss": total.loss,
            "eval_loss_per_row": self.losses.per_row,
            "eval_perplexity": total.perplexity,
            "supervised_tokens": total.num_supervised_tokens,
            **self.scores.as_record(),
            "answer_tokens_per_second": self.tokens_per_second,
        }
        if self.general is not None:
            record["general_loss"] = self.general.total.loss
        return record

    @property
    def tokens_per_second(self) -> float | None:
        """Return how fast the answers came, None without any."""
        num_tokens = sum(answer.num_tokens for answer in self.answers)
        return num_tokens / self.answer_seconds if num_tokens and self.answer_seconds else None


def prepare_questions(opened: OpenModel, conversations: Sequence[Conversation], where: str) -> Questions:
    """Return the rows that fit a model; how many do not is said.

    Raises `DataError` if none does.
    """
    encoder = text_encoder(opened.tokenizer)
    encoded = encode_separately(conversations, opened.template, encoder, opened.trained)
    limits = Limits(opened.max_length)
    fitting = [place for place, rows in enumerate(encoded) if limits.admit(rows)]
    num_left_out = len(encoded) - len(fitting)
    if num_left_out:
        terminal.warn(f"{num_left_out} rows are longer than {opened.max_length} tokens: left out")
    if not fitting:
        raise DataError(
            f"no row is left within {opened.max_length} tokens", where=where, remedy="Shorten the rows."
        )
    kept = tuple(conversations[place] for place in fitting)
    asked = tuple(place for place, conversation in enumerate(kept) if not conversation.is_text)
    expected = tuple(kept[place].messages[-1].content for place in asked)
    owned = [(row, owner) for owner, place in enumerate(fitting) for row in encoded[place]]
    return Questions(
        conversations=kept,
        rows=tuple(row for row, _ in owned),
        owner_of_row=tuple(owner for _, owner in owned),
        asked=asked,
        expected=expected,
        num_expected_tokens=tuple(map(len, _token_ids(opened, expected))),
        num_left_out=num_left_out,
    )


def measure_model(
    opened: OpenModel, name: str, questions: Questions, general: Sequence[Conversation]
) -> Measured:
    """Return what a model does on the rows: losses of all, answers to each one's last turn.

    Answers take the likeliest token each time, so that the same model gives the same figures.
    """
    losses = _measure_rows(opened, questions.rows).grouped(
        questions.owner_of_row, len(questions.conversations)
    )
    started = time.perf_counter()
    answers = _answer(opened, name, questions)
    answer_seconds = time.perf_counter() - started
    return Measured(
        name=name,
        losses=losses,
        scores=score_answers(
            answers, questions.expected, questions.num_expected_tokens, opened.settings.max_new_tokens
        ),
        answers=tuple(answers),
        general=_measure_general(opened, general) if general else None,
        answer_seconds=answer_seconds,
    )


def _measure_rows(opened: OpenModel, rows: Sequence[EncodedRow]) -> RowLosses:
    packs = pack_rows(
        rows, range(len(rows)), choose_pack_tokens(opened.model.device.type), shares_prefixes=True
    )
    with packed_forward(opened.transformer) as packed:
        return measure_losses(packed, packs, len(rows), opened.model.device, nullcontext)


def _answer(opened: OpenModel, name: str, questions: Questions) -> list[Answer]:
    if not questions.asked:
        return []
    prompts = [questions.conversations[place].messages[:-1] for place in questions.asked]
    settings = replace(opened.settings, temperature=0.0)
    with terminal.progress(f"{name} answers", len(prompts)) as progress:
        return opened.answerer.answer_all(
            prompts,
            settings,
            tools=[questions.conversations[place].tools for place in questions.asked],
            on_batch=lambda num_answers: progress.advance("", num_answers),
        )


def _measure_general(opened: OpenModel, general: Sequence[Conversation]) -> RowLosses:
    """Return the losses on paragraphs, each cut to what the model takes."""
    encoder = text_encoder(opened.tokenizer)
    encoded = [rows[0] for rows in encode_separately(general, opened.template, encoder) if rows]
    longest = min(opened.max_length, choose_pack_tokens(opened.model.device.type))
    rows = [
        EncodedRow(row.token_ids_T[:longest], row.is_supervised_T[:longest], row.row_number)
        for row in encoded
    ]
    return _measure_rows(opened, rows)


def _token_ids(opened: OpenModel, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    token_ids: list[list[int]] = opened.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return token_ids
