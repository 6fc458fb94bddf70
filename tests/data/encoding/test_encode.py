"""Token ids and what is trained on: the answers with their ends, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.encoding.encode import encode_conversations
from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.data.encoding.template import ChatTemplate
from llamafarm.data.encoding.tokenization import WholeTexts
from llamafarm.errors import TemplateError
from llamafarm.model.load import Base, load_tokenizer, text_encoder, tokenize_with
from llamafarm.model.prompt import build_template

SHARED_MODELS = Path(__file__).parents[4] / "shared" / "models"
FORMAT = "Question: {input}\nAnswer: {output}"

ONE_TURN = Message("user", "What is asthma?"), Message("assistant", "A disease of the lungs.")
TWO_TURNS = *ONE_TURN, Message("user", "And flu?", "the virus"), Message("assistant", "Ünlike it: 123!")
WITH_SYSTEM = Message("system", "Be brief."), *TWO_TURNS


def encode(tokenizer: Any, template: ChatTemplate, *rows: tuple[Message, ...]) -> list[EncodedRow]:
    conversations = [Conversation(messages, number) for number, messages in enumerate(rows, start=1)]
    return encode_conversations(conversations, template, text_encoder(tokenizer))


def supervised_runs(row: EncodedRow) -> list[list[int]]:
    """Return the runs of adjacent supervised tokens."""
    starts = np.flatnonzero(np.diff(row.is_supervised_T.astype(int), prepend=0) == 1)
    ends = np.flatnonzero(np.diff(row.is_supervised_T.astype(int), append=0) == -1) + 1
    return [row.token_ids_T[start:end].tolist() for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("prompt_format", [None, FORMAT, "{system} Q: {input}\nA:\n{output}\n##"])
@pytest.mark.parametrize("messages", [ONE_TURN, TWO_TURNS, WITH_SYSTEM], ids=["one", "two", "system"])
def test_the_supervised_tokens_are_the_answers_and_their_ends(
    tokenizer: Any, prompt_format: str | None, messages: tuple[Message, ...]
) -> None:
    template, _ = build_template(tokenizer, prompt_format, None)
    (row,) = encode(tokenizer, template, messages)
    lead, tail = ("", "\n##") if prompt_format and prompt_format.endswith("##") else (" ", "")
    answers = [message.content for message in messages if message.role == "assistant"]
    decoded = [tokenizer.decode(run) for run in supervised_runs(row)]
    assert decoded == [f"{lead}{answer}{tail}{tokenizer.eos_token}" for answer in answers]
    assert all(run[-1] == tokenizer.eos_token_id for run in supervised_runs(row))
    assert tokenizer.decode(row.token_ids_T) == template.render(messages)
    assert row.num_supervised_tokens == sum(map(len, supervised_runs(row)))


def test_what_the_model_is_asked_with_is_how_its_rows_begin(tokenizer: Any) -> None:
    template, _ = build_template(tokenizer, FORMAT, None)
    (row,) = encode(tokenizer, template, WITH_SYSTEM)
    for turn in (2, 4):
        prompt = template.render(WITH_SYSTEM[:turn], add_generation_prompt=True)
        (prompt_ids,) = tokenize_with(tokenizer)([prompt])
        assert row.token_ids_T[: len(prompt_ids)].tolist() == prompt_ids
        assert not row.is_supervised_T[len(prompt_ids) - 1]
        assert row.is_supervised_T[len(prompt_ids)]


def test_rows_keep_their_order_and_numbers_however_they_are_batched(tokenizer: Any) -> None:
    template, _ = build_template(tokenizer, None, None)
    together = encode(tokenizer, template, ONE_TURN, TWO_TURNS, ONE_TURN)
    assert [row.row_number for row in together] == [1, 2, 3]
    for row, messages in zip(together, (ONE_TURN, TWO_TURNS, ONE_TURN), strict=True):
        (alone,) = encode(tokenizer, template, messages)
        assert row.token_ids_T.tolist() == alone.token_ids_T.tolist()
        assert row.is_supervised_T.tolist() == alone.is_supervised_T.tolist()
        assert row.num_tokens == len(row.token_ids_T)
    assert encode(tokenizer, template) == []


def test_the_beginning_of_text_stands_once(tokenizer: Any) -> None:
    template, _ = build_template(tokenizer, None, None)
    (row,) = encode(tokenizer, template, WITH_SYSTEM)
    assert row.token_ids_T.tolist().count(tokenizer.bos_token_id) == 1
    assert row.token_ids_T[0] == tokenizer.bos_token_id


def test_a_first_token_is_never_counted_as_supervised() -> None:
    ids = np.array([5, 6, 7], np.int32)
    for marks, num_supervised in (([True] * 3, 2), ([True, False, False], 0), ([False, True, True], 2)):
        assert EncodedRow(ids, np.array(marks), 1).num_supervised_tokens == num_supervised


def test_a_tokenizer_that_joins_prompt_and_answer_is_an_error_with_the_row() -> None:
    def tokenize_in_pairs(texts: Any) -> list[list[int]]:
        return [
            [ord(text[at]) * 1000 + len(text[at : at + 2]) for at in range(0, len(text), 2)] for text in texts
        ]

    template = ChatTemplate(
        "{% for m in messages %}{{ m['content'] }}{{ '#' if m['role'] == 'assistant' }}{% endfor %}",
        special_tokens={},
        control_tokens=["#"],
    )
    even = Conversation((Message("user", "qu"), Message("assistant", "abc")), 1)
    odd = Conversation((Message("user", "que"), Message("assistant", "ab")), 9)
    encoder = WholeTexts(tokenize_in_pairs)
    assert encode_conversations([even], template, encoder)[0].is_supervised_T.tolist() == [
        False,
        True,
        True,
    ]
    with pytest.raises(TemplateError) as caught:
        encode_conversations([even, odd], template, encoder)
    assert "row 9" in caught.value.where
    assert "'que'" in caught.value.problem


_text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(question=_text, answer=_text, prompt_format=st.sampled_from([None, FORMAT, "{input}\n{output}"]))
def test_whatever_an_answer_holds_all_of_it_is_trained_on_and_nothing_else(
    tokenizer: Any, question: str, answer: str, prompt_format: str | None
) -> None:
    template, _ = build_template(tokenizer, prompt_format, None)
    (row,) = encode(tokenizer, template, (Message("user", question), Message("assistant", answer)))
    lead = "" if prompt_format == "{input}\n{output}" else " "
    (run,) = supervised_runs(row)
    assert tokenizer.decode(run) == f"{lead}{answer.strip()}{tokenizer.eos_token}"
    assert run[-1] == tokenizer.eos_token_id
    assert row.is_supervised_T[-1]


@pytest.mark.parametrize("name", ["gpt2-tokenizer", "minueza-chat-tokenizer"])
@pytest.mark.parametrize("prompt_format", [FORMAT, "### Input:\n{input}\n\n### Response:\n{output}"])
def test_foreign_tokenizers_split_at_the_same_places(name: str, prompt_format: str) -> None:
    folder = SHARED_MODELS / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    tokenizer = load_tokenizer(Base(name, str(folder)))
    template, _ = build_template(tokenizer, prompt_format, None)
    (row,) = encode(tokenizer, template, WITH_SYSTEM)
    prompts = [template.render(WITH_SYSTEM[:turn], add_generation_prompt=True) for turn in (2, 4)]
    cuts = [len(ids) for ids in tokenize_with(tokenizer)(prompts)]
    ends = (np.flatnonzero(row.token_ids_T == tokenizer.eos_token_id) + 1).tolist()
    expected = [at for cut, end in zip(cuts, ends, strict=True) for at in range(cut, end)]
    assert np.flatnonzero(row.is_supervised_T).tolist() == expected
    for run, answer in zip(supervised_runs(row), ("A disease of the lungs.", "Ünlike it: 123!"), strict=True):
        assert tokenizer.decode(run).strip() == f"{answer}{tokenizer.eos_token}"
