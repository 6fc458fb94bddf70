"""Rows that are too long: what becomes of them, and that no answer is ever cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.encoding.block import BlockEncoder, RowEncoding
from llamafarm.data.encoding.fitting import Fitting, Limits, WhenTooLong
from llamafarm.data.encoding.prompt_format import compile_prompt_template
from llamafarm.data.encoding.rows import EncodedRows
from llamafarm.data.encoding.table import fit_rows, table_of
from llamafarm.data.reading.records import FileReport, ReadOptions
from llamafarm.data.selection.traces import TracesWanted
from llamafarm.errors import DataError
from llamafarm.model.load import text_encoder
from llamafarm.model.prompt import template_from_source

END = "<|end|>"


class Fitted(NamedTuple):
    rows: EncodedRows
    warnings: list[str]


@pytest.fixture(scope="module")
def fit(chat_tokenizer: Any) -> Any:
    """Fit conversations with a plain template; answers the result and the text of each row."""
    compiled = compile_prompt_template("Q: {instruction}\n{input}\nA: {output}", adds_bos=False)
    template = template_from_source(chat_tokenizer, compiled.source, compiled.joiner)
    encoder = text_encoder(chat_tokenizer)

    def run(
        conversations: Sequence[Conversation], limits: Limits, how: WhenTooLong
    ) -> tuple[Fitted, list[str], list[str]]:
        fitting = Fitting(limits, how) if how in ("truncate_prompt", "split") else None
        encoding = RowEncoding(template, encoder, len(chat_tokenizer), fitting=fitting)
        block = BlockEncoder(ReadOptions(), encoding, TracesWanted()).encode_conversations(conversations)
        table = table_of(FileReport(Path("rows.jsonl"), "messages", "", len(conversations)), block)
        fitted = Fitted(*fit_rows(table, np.arange(len(conversations)), limits, how, "training"))
        texts = [chat_tokenizer.decode(row.token_ids_T) for row in fitted.rows]
        answers = [chat_tokenizer.decode(row.token_ids_T[row.is_supervised_T]) for row in fitted.rows]
        return fitted, texts, answers

    return run


def row(*turns: str, number: int = 1, system: str = "", extra: str = "") -> Conversation:
    head = (Message("system", system),) if system else ()
    roles = ("user", "assistant")
    messages = [Message(roles[place % 2], text) for place, text in enumerate(turns)]
    if extra:
        messages[0] = Message("user", turns[0], extra)
    return Conversation((*head, *messages), number)


LONG = " ".join(f"word{number}" for number in range(200))


def test_a_row_within_the_limits_is_as_it_was(fit: Any) -> None:
    for how in ("drop", "truncate_prompt", "split", "error"):
        fitted, texts, _ = fit([row("a", "b")], Limits(50), how)
        assert texts == [f"Q: a\nA: b{END}"]
        assert fitted.warnings == []


def test_drop_leaves_out_what_is_too_long_and_says_how_long(fit: Any) -> None:
    fitted, texts, _ = fit([row("a", "b"), row(LONG, "c"), row("d", "e")], Limits(60), "drop")
    assert texts == [f"Q: a\nA: b{END}", f"Q: d\nA: e{END}"]
    (warning,) = fitted.warnings
    assert warning.startswith("1 of 3 training rows are too long and left out")
    assert "max_length is 60" in warning


@pytest.mark.parametrize(
    ("limits", "setting"),
    [
        (Limits(60), "max_length"),
        (Limits(9999, 40), "max_input_length"),
        (Limits(9999, None, 3), "max_output_length"),
    ],
)
def test_error_names_the_row_and_the_setting(fit: Any, limits: Limits, setting: str) -> None:
    with pytest.raises(DataError) as caught:
        fit([row("a", "b"), row(LONG, "c d e f g h i j k l", number=7)], limits, "error")
    assert caught.value.where == "row 7"
    assert setting in caught.value.problem and setting in caught.value.remedy


def test_a_prompt_loses_its_beginning_up_to_a_word_and_the_answer_stays(fit: Any) -> None:
    fitted, texts, answers = fit([row(LONG, "The answer."), row("a", "b")], Limits(80), "truncate_prompt")
    assert answers[0] == f" The answer.{END}"
    question = texts[0].removeprefix("Q: ").partition("\n")[0]
    assert LONG.endswith(" " + question)
    assert 60 <= fitted.rows[0].num_tokens <= 80
    assert fitted.warnings == [
        "1 of 2 training rows are too long and are taken with a shorter prompt "
        "(dataset.when_too_long: truncate_prompt)"
    ]


def test_of_an_alpaca_row_the_input_is_shortened_and_the_instruction_kept(fit: Any) -> None:
    _, texts, _ = fit([row("Sum it up.", "It is.", extra=LONG)], Limits(80), "truncate_prompt")
    assert texts[0].startswith("Q: Sum it up.\nword")
    assert texts[0].endswith(f"word199\nA: It is.{END}")


def test_earlier_exchanges_go_before_words_and_the_system_message_stays(fit: Any) -> None:
    conversation = row(LONG, "b", "c", "d", "e", "f", system="Be nice.")
    _, texts, answers = fit([conversation], Limits(60), "truncate_prompt")
    assert texts == [f"Be nice.\n\nQ: c\nA: d{END}Q: e\nA: f{END}"]
    assert answers == [f" d{END} f{END}"]


def test_split_makes_rows_of_as_many_exchanges_as_fit(fit: Any) -> None:
    turns = [text for number in range(6) for text in (f"ask {number}", f"say {number}")]
    fitted, texts, _ = fit([row(*turns, system="Be nice.")], Limits(60), "split")
    assert len(texts) > 1
    assert all(text.startswith("Be nice.\n\nQ: ask") for text in texts)
    assert [number for text in texts for number in range(6) if f"say {number}" in text] == list(range(6))
    assert fitted.warnings == [
        f"1 of 1 training rows are too long and are taken as {len(texts)} rows (dataset.when_too_long: split)"
    ]


@pytest.mark.parametrize("how", ["truncate_prompt", "split"])
@pytest.mark.parametrize(
    "conversation",
    [
        row("a", LONG),
        row("a", "b", "c", LONG),
        row("a", "b", system=LONG),
        Conversation((Message("text", LONG),), 1),
    ],
    ids=["answer", "last answer", "system", "text"],
)
def test_what_cannot_be_made_to_fit_is_left_out_and_counted(
    fit: Any, conversation: Conversation, how: WhenTooLong
) -> None:
    fitted, texts, _ = fit([conversation, row("a", "b")], Limits(60), how)
    assert texts == [f"Q: a\nA: b{END}"]
    assert "1 of 2 training rows are too long and left out" in fitted.warnings[0]


_text = st.text("ab \n.é", min_size=1, max_size=60).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    turns=st.lists(st.tuples(_text, _text), min_size=1, max_size=4),
    most=st.integers(8, 120),
    how=st.sampled_from(["drop", "truncate_prompt", "split"]),
)
def test_no_answer_is_cut_and_no_row_is_above_a_limit(
    fit: Any, turns: list[tuple[str, str]], most: int, how: WhenTooLong
) -> None:
    conversation = row(*[text for turn in turns for text in turn])
    fitted, _, answers = fit([conversation], Limits(most), how)
    whole = [f" {answer.strip()}{END}" for _, answer in turns]
    for encoded, trained in zip(fitted.rows, answers, strict=True):
        assert encoded.num_tokens <= most
        # What is trained on is a run of whole answers, each with its end.
        runs = [
            "".join(whole[start:end])
            for start in range(len(whole))
            for end in range(start + 1, len(whole) + 1)
        ]
        assert trained in runs
    assert len(fitted.rows) or fitted.warnings
