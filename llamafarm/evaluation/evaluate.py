"""Measure a model on a file of held-out rows, its base beside it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from llamafarm import terminal
from llamafarm.data.conversation import Conversation
from llamafarm.data.encoding.encode import encode_separately
from llamafarm.data.encoding.fitting import Limits
from llamafarm.data.encoding.pack import Pack, pack_rows
from llamafarm.errors import DataError
from llamafarm.evaluation.answers import AnswersResult, score_answers
from llamafarm.evaluation.loss import LossResult, measure_loss
from llamafarm.inference.generate import Answer
from llamafarm.inference.open import OpenModel
from llamafarm.model.forward import packed_forward
from llamafarm.model.load import text_encoder
from llamafarm.planning.packs import choose_pack_tokens


@dataclass(frozen=True, slots=True)
class Measured:
    """One model on the rows: `which` is base or tuned."""

    which: str
    loss: LossResult
    scores: AnswersResult
    answers: tuple[Answer, ...]
    conversations: tuple[Conversation, ...]

    def as_record(self) -> dict[str, float | int]:
        """Return the figures as they go into JSON."""
        return {
            "eval_loss": self.loss.loss,
            "eval_perplexity": self.loss.perplexity,
            "supervised_tokens": self.loss.num_supervised_tokens,
            "rows": self.scores.num_answers,
            "exact_match": self.scores.exact_match,
            "stop_rate": self.scores.stop_rate,
        }

    def as_line(self) -> str:
        """Return the figures as a line for people."""
        loss = f"{self.which:<6} eval_loss {self.loss.loss:.4f}  eval_perplexity {self.loss.perplexity:.3f}"
        if not self.scores.num_answers:
            return f"{loss}  (text, which asks for no answers)"
        return (
            f"{loss}  exact_match {self.scores.exact_match:.1%}  "
            f"stops_by_itself {self.scores.stop_rate:.1%}  ({self.scores.num_answers} rows)"
        )


def evaluate_model(opened: OpenModel, conversations: Sequence[Conversation], where: str) -> list[Measured]:
    """Return what the base, and the tuned model if there is one, do on the rows.

    Answers are to each row's last turn, generated with the model's settings at temperature 0, so that the
    same model gives the same figures. Raises `DataError` if no row fits the model.
    """
    encoder = text_encoder(opened.tokenizer)
    encoded = encode_separately(conversations, opened.template, encoder, opened.trained)
    limits = Limits(opened.max_length)
    fitting = [place for place, rows in enumerate(encoded) if limits.admit(rows)]
    if len(fitting) < len(encoded):
        num_long = len(encoded) - len(fitting)
        terminal.warn(f"{num_long} rows are longer than {opened.max_length} tokens: left out")
    if not fitting:
        raise DataError(
            f"no row is left within {opened.max_length} tokens", where=where, remedy="Shorten the rows."
        )
    rows = [row for place in fitting for row in encoded[place]]
    packs = pack_rows(
        rows, range(len(rows)), choose_pack_tokens(opened.model.device.type), shares_prefixes=True
    )
    # Plain text has no question that could be answered.
    kept = [conversations[place] for place in fitting if not conversations[place].is_text]
    with opened.base_beside() as base:
        measured = [_measure(base, "base", packs, kept)]
    if opened.is_tuned:
        measured.append(_measure(opened, "tuned", packs, kept))
    return measured


def _measure(
    opened: OpenModel, which: str, packs: Sequence[Pack], conversations: Sequence[Conversation]
) -> Measured:
    with packed_forward(opened.transformer) as packed:
        loss = measure_loss(packed, packs, opened.model.device, nullcontext)
    prompts = [conversation.messages[:-1] for conversation in conversations]
    settings = replace(opened.settings, temperature=0.0)
    with terminal.progress(f"{which} answers", len(prompts)) as progress:
        answers = opened.answerer.answer_all(
            prompts, settings, on_batch=lambda num_answers: progress.advance("", num_answers)
        )
    expected = [conversation.messages[-1].content for conversation in conversations]
    return Measured(which, loss, score_answers(answers, expected), tuple(answers), tuple(conversations))
