"""Answers: what is streamed, where they end, and that a batch answers as one prompt alone does."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llamafarm.data.conversation import Message
from llamafarm.errors import InputError, PromptTooLongError
from llamafarm.inference.generate import (
    INTERRUPTED,
    Answer,
    Answerer,
    GenerationSettings,
    find_stop,
    hold_back,
)
from llamafarm.inference.open import OpenModel

Forces = Callable[[Any, list[Any]], AbstractContextManager[None]]
Question = tuple[Message, ...]


@pytest.fixture
def greedy(opened: OpenModel) -> GenerationSettings:
    """The likeliest token each time, twelve of them."""
    return opened.settings


def ask(
    answerer: Answerer, messages: Question, settings: GenerationSettings, seed: int = 0
) -> tuple[Answer, list[str]]:
    """Return the answer and the pieces that were streamed on the way."""
    pieces: list[str] = []
    torch.manual_seed(seed)
    return answerer.stream(messages, settings, pieces.append), pieces


def longer(question: Question, num_words: int) -> Question:
    return (Message("user", "asthma and flu " * num_words + question[0].content),)


@pytest.mark.parametrize("seed", range(12))
def test_the_pieces_of_an_answer_are_the_answer(
    answerer: Answerer, question: Question, greedy: GenerationSettings, seed: int
) -> None:
    sampled = replace(greedy, temperature=1.0, max_new_tokens=20)
    whole, pieces = ask(answerer, question, sampled, seed)
    assert "".join(pieces) == whole.text
    assert len(pieces) > 3

    draw = random.Random(seed)
    starts = [at for at in range(1, len(whole.text)) if not whole.text[at].isspace()]
    stops = tuple(whole.text[at : at + draw.randint(1, 6)] for at in draw.sample(starts, 3))
    cut, pieces = ask(answerer, question, replace(sampled, stop_sequences=stops), seed)
    assert cut.ended_by == "stop-sequence"
    assert "".join(pieces) == cut.text
    assert cut.text == whole.text[: find_stop(whole.text, stops)].strip()
    assert cut.num_tokens <= whole.num_tokens


def test_a_stop_sequence_is_never_shown_not_even_in_part(
    answerer: Answerer, opened: OpenModel, question: Question, greedy: GenerationSettings, forces: Forces
) -> None:
    tokenize = opened.tokenizer
    said = "It is so. User: more"
    token_ids = [tokenize(character, add_special_tokens=False)["input_ids"][0] for character in said]
    settings = replace(greedy, max_new_tokens=len(said), stop_sequences=("User:",))
    with forces(opened.model, token_ids):
        answer, pieces = ask(answerer, question, settings)
    assert answer == Answer("It is so.", "stop-sequence", said.index(":") + 1)
    assert "".join(pieces) == "It is so."
    assert "U" not in "".join(pieces)


def test_what_only_looked_like_a_stop_sequence_is_shown_after_all(
    answerer: Answerer, opened: OpenModel, question: Question, greedy: GenerationSettings, forces: Forces
) -> None:
    said = "Users of it are many"
    token_ids = [opened.tokenizer(character, add_special_tokens=False)["input_ids"][0] for character in said]
    settings = replace(greedy, max_new_tokens=len(said), stop_sequences=("User:", "many more"))
    with forces(opened.model, token_ids):
        answer, pieces = ask(answerer, question, settings)
    assert "".join(pieces) == answer.text == said
    assert answer.ended_by == "max-new-tokens"


def test_characters_of_several_tokens_are_shown_whole(
    answerer: Answerer, opened: OpenModel, question: Question, greedy: GenerationSettings, forces: Forces
) -> None:
    token_ids = opened.tokenizer("a🙂ß漢b", add_special_tokens=False)["input_ids"]
    assert len(token_ids) > 5, "the tokenizer has no single tokens for these"
    with forces(opened.model, token_ids):
        answer, pieces = ask(answerer, question, replace(greedy, max_new_tokens=len(token_ids)))
    assert "".join(pieces) == answer.text == "a🙂ß漢b"
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_a_batch_answers_as_each_prompt_alone(
    answerer: Answerer, question: Question, greedy: GenerationSettings, batch_size: int
) -> None:
    prompts = [longer(question, num_words) for num_words in (7, 0, 12, 1, 3)]
    counts: list[int] = []
    answers = answerer.answer_all(prompts, greedy, batch_size=batch_size, on_batch=counts.append)
    assert answers == [ask(answerer, prompt, greedy)[0] for prompt in prompts]
    assert len({answer.text for answer in answers}) == len(prompts)
    assert sum(counts) == len(prompts)
    assert max(counts) <= batch_size


def test_rows_of_a_batch_end_each_at_its_own_stop_sequence(
    answerer: Answerer, question: Question, greedy: GenerationSettings
) -> None:
    prompts = [longer(question, num_words) for num_words in (0, 9, 4)]
    whole = answerer.answer_all(prompts, greedy)
    settings = replace(greedy, stop_sequences=(whole[0].text[2:5], whole[1].text[6:9]))
    answers = answerer.answer_all(prompts, settings)
    assert answers == [ask(answerer, prompt, settings)[0] for prompt in prompts]
    assert [answer.ended_by for answer in answers[:2]] == ["stop-sequence"] * 2
    assert len({answer.num_tokens for answer in answers}) > 1


def test_no_question_is_no_answer(answerer: Answerer, greedy: GenerationSettings) -> None:
    assert answerer.answer_all([], greedy) == []


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_an_answer_has_at_most_max_new_tokens(
    answerer: Answerer, question: Question, greedy: GenerationSettings, num_tokens: int
) -> None:
    answer, _ = ask(answerer, question, replace(greedy, max_new_tokens=num_tokens))
    assert (answer.num_tokens, answer.ended_by) == (num_tokens, "max-new-tokens")
    assert not answer.stopped_by_itself
    whole, _ = ask(answerer, question, greedy)
    assert whole.text.startswith(answer.text)


@pytest.mark.parametrize("num_steps", [0, 4])
def test_the_end_of_turn_token_ends_an_answer_and_is_no_part_of_it(
    answerer: Answerer,
    opened: OpenModel,
    question: Question,
    greedy: GenerationSettings,
    forces: Forces,
    num_steps: int,
) -> None:
    end_id = opened.tokenizer.convert_tokens_to_ids(opened.template.end_of_turn)
    whole, _ = ask(answerer, question, greedy)
    with forces(opened.model, [None] * num_steps + [end_id]):
        answer, pieces = ask(answerer, question, greedy)
    assert answer.ended_by == "end-of-turn"
    assert answer.stopped_by_itself
    assert answer.num_tokens == num_steps
    assert "".join(pieces) == answer.text
    assert whole.text.startswith(answer.text)
    assert opened.template.end_of_turn not in answer.text


def after(num_calls: int) -> Callable[[], bool]:
    """Return what says from its `num_calls`-th call on that somebody interrupts."""
    calls = iter(range(1, num_calls))
    return lambda: next(calls, None) is None


def test_an_interrupted_answer_is_what_had_come_of_it(
    answerer: Answerer, question: Question, greedy: GenerationSettings
) -> None:
    whole, _ = ask(answerer, question, greedy)
    pieces: list[str] = []
    answer = answerer.stream(question, greedy, pieces.append, after(5))
    assert (answer.ended_by, answer.num_tokens, answer.is_interrupted) == (INTERRUPTED, 5, True)
    assert "".join(pieces) == answer.text and whole.text.startswith(answer.text)
    assert not whole.is_interrupted and answer.text != whole.text


def test_an_answer_interrupted_within_a_character_ends_before_it(
    answerer: Answerer, opened: OpenModel, question: Question, greedy: GenerationSettings, forces: Forces
) -> None:
    token_ids = opened.tokenizer("ab漢", add_special_tokens=False)["input_ids"]
    with forces(opened.model, token_ids):
        answer = answerer.stream(question, greedy, lambda piece: None, after(len(token_ids) - 1))
    assert (answer.text, answer.ended_by) == ("ab", INTERRUPTED)


def test_of_interrupted_batches_the_answers_that_had_ended_are_whole(
    answerer: Answerer, question: Question, greedy: GenerationSettings
) -> None:
    prompts = [longer(question, num_words) for num_words in (0, 3, 6, 9)]
    whole = answerer.answer_all(prompts, greedy)
    stopping = replace(greedy, stop_sequences=(whole[0].text[1:4],))
    expected = answerer.answer_all(prompts[:1], stopping)[0]
    # Once before the batch, then after every token: the first row has ended by then, the second has not.
    answers = answerer.answer_all(
        prompts, stopping, batch_size=2, is_interrupted=after(expected.num_tokens + 4)
    )
    assert answers[0] == expected and expected.ended_by == "stop-sequence"
    assert answers[1].is_interrupted and answers[1].num_tokens > 0
    assert answers[2:] == [Answer("", INTERRUPTED, 0)] * 2


def test_what_the_model_itself_calls_an_end_ends_an_answer(
    opened: OpenModel, question: Question, greedy: GenerationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = ask(opened.answerer, question, greedy)
    first_ids = opened.tokenizer(" " + whole.text, add_special_tokens=False)["input_ids"]
    assert opened.model.generation_config is not None
    monkeypatch.setattr(opened.model.generation_config, "eos_token_id", [2, *first_ids[2:5]])
    answer = opened.answerer.answer_all([question], greedy)[0]
    assert answer.ended_by == "end-of-turn"
    assert answer.num_tokens < whole.num_tokens


def test_a_seed_gives_the_same_answer_again(
    answerer: Answerer, question: Question, greedy: GenerationSettings
) -> None:
    sampled = replace(greedy, temperature=1.0)
    answers = [ask(answerer, question, sampled, seed)[0].text for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert len(set(answers)) == 3


@pytest.mark.parametrize("narrowing", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_narrowing_the_choice_to_one_token_is_greedy(
    answerer: Answerer, question: Question, greedy: GenerationSettings, narrowing: dict[str, Any]
) -> None:
    sampled = replace(greedy, temperature=1.0)
    expected = ask(answerer, question, greedy)[0]
    for seed in (1, 2):
        assert ask(answerer, question, sampled, seed)[0] != expected
        assert ask(answerer, question, replace(sampled, **narrowing), seed)[0] == expected


@pytest.mark.parametrize("change", [{"top_k": 20}, {"top_p": 0.6}, {"temperature": 3.0}])
def test_every_sampling_setting_changes_the_answer(
    answerer: Answerer, question: Question, greedy: GenerationSettings, change: dict[str, Any]
) -> None:
    sampled = replace(greedy, temperature=1.0)
    changed = replace(sampled, **change)
    assert any(
        ask(answerer, question, sampled, seed)[0] != ask(answerer, question, changed, seed)[0]
        for seed in range(3)
    )


def test_a_repetition_penalty_keeps_tokens_from_coming_again(
    answerer: Answerer, opened: OpenModel, question: Question, greedy: GenerationSettings, forces: Forces
) -> None:
    (word_id,) = opened.tokenizer(" lungs", add_special_tokens=False)["input_ids"][:1]

    def num_times(penalty: float) -> int:
        # The likeliest token at each step, but only just.
        def favour(module: Any, inputs: Any, output: Any) -> None:
            output.logits[:, -1, word_id] = output.logits[:, -1].max(dim=-1).values * 1.01

        handle = opened.model.register_forward_hook(favour)
        try:
            answer, _ = ask(answerer, question, replace(greedy, repetition_penalty=penalty))
        finally:
            handle.remove()
        return answer.text.count(opened.tokenizer.decode([word_id]).strip())

    assert num_times(1.0) == greedy.max_new_tokens
    assert num_times(1.5) == 1


def test_a_batch_is_penalised_as_each_prompt_alone(
    answerer: Answerer, question: Question, greedy: GenerationSettings
) -> None:
    penalised = replace(greedy, repetition_penalty=1.8)
    prompts = [longer(question, num_words) for num_words in (0, 10, 2)]
    assert answerer.answer_all(prompts, penalised) == [
        ask(answerer, prompt, penalised)[0] for prompt in prompts
    ]


def test_a_prompt_that_fills_the_context_is_refused(
    answerer: Answerer, question: Question, greedy: GenerationSettings
) -> None:
    for act in (
        lambda: ask(answerer, longer(question, 300), greedy),
        lambda: answerer.answer_all([question, longer(question, 300)], greedy),
    ):
        with pytest.raises(PromptTooLongError) as caught:
            act()
        assert isinstance(caught.value, InputError) and "256" in caught.value.problem
    assert answerer.count_tokens(longer(question, 300)) > answerer.context_length == 256


def test_an_answer_never_runs_over_the_context(
    answerer: Answerer, opened: OpenModel, question: Question, greedy: GenerationSettings
) -> None:
    def length(num_words: int) -> int:
        prompt = opened.template.render(longer(question, num_words), add_generation_prompt=True)
        return len(opened.tokenizer(prompt, add_special_tokens=False)["input_ids"])

    num_words = next(number for number in range(300) if length(number + 1) >= 256)
    answer, _ = ask(answerer, longer(question, num_words), replace(greedy, max_new_tokens=200))
    assert answer.num_tokens == 256 - length(num_words)
    assert answer.ended_by == "max-new-tokens"


_letters = st.text(st.sampled_from("ab\n"), max_size=8)
_stops = st.lists(st.text(st.sampled_from("ab\n"), min_size=1, max_size=4), max_size=3)


@settings(max_examples=200, deadline=None)
@given(text=_letters, stops=_stops)
def test_a_stop_is_found_where_the_first_one_begins(text: str, stops: list[str]) -> None:
    found = find_stop(text, stops)
    places = [at for at in range(len(text)) if any(text.startswith(stop, at) for stop in stops)]
    assert found == (places[0] if places else None)


@settings(max_examples=300, deadline=None)
@given(shown=_letters, coming=_letters, stops=_stops)
def test_what_is_not_held_back_can_no_longer_be_part_of_a_stop(
    shown: str, coming: str, stops: list[str]
) -> None:
    assume(find_stop(shown, stops) is None)
    held = hold_back(shown, stops)
    assert 0 <= held <= len(shown)
    found = find_stop(shown + coming, stops)
    assert found is None or found >= len(shown) - held
    # No more than needed: what is held back is how some stop sequence begins.
    assert held == 0 or any(stop.startswith(shown[-held:]) for stop in stops)
