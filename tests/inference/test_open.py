"""Opening a model to be asked: a base, or a final model with its adapter, which can be lifted off."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llamafarm.data.conversation import Message
from llamafarm.errors import ModelError
from llamafarm.inference.generate import INTERRUPTED, Answer, GenerationSettings
from llamafarm.inference.open import InterruptibleAnswerer, OpenModel, open_base, open_final_model
from llamafarm.model.adapter import AdapterSettings, adapter_tensors, attach_adapter
from llamafarm.model.bundle import Bundle, write_bundle
from llamafarm.model.load import Base, find_base, load_model, load_tokenizer

GENERATION = {
    "max_new_tokens": 9,
    "temperature": 0.0,
    "top_p": 0.8,
    "top_k": None,
    "repetition_penalty": 1.2,
}


@pytest.fixture(scope="module")
def final_model(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A final model whose adapter changes every answer."""
    base = find_base(str(tiny_base))
    tokenizer = load_tokenizer(base)
    model = load_model(base, dtype=torch.float32, device=torch.device("cpu"))
    adapted, _ = attach_adapter(model, AdapterSettings(4, 8, 0.0, "all-linear"), base_name=base.name, seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    folder = tmp_path_factory.mktemp("final-model")
    bundle = Bundle(base.name, "s", "<|end|>", " / ", 99, ("##",), GENERATION)
    write_bundle(folder, bundle, adapted, adapter_tensors(adapted), tokenizer)
    return folder


def answer_of(model: OpenModel) -> Answer:
    return model.answerer.stream([Message("user", "What is asthma?")], model.settings, lambda piece: None)


def test_a_final_model_knows_everything_it_takes(final_model: Path, tiny_base: Path) -> None:
    opened = open_final_model(final_model, "cpu")
    assert opened.is_tuned
    assert (opened.name, opened.base_name, opened.max_length) == (str(final_model), str(tiny_base), 99)
    assert opened.settings == GenerationSettings(9, 0.0, 0.8, None, 1.2, ("##",))
    assert opened.template.joiner == " / "
    assert not opened.model.training
    assert opened.transformer.config.model_type == "llama"


def test_the_adapter_changes_the_answer_and_can_be_lifted_off(final_model: Path, opened: OpenModel) -> None:
    tuned = open_final_model(final_model, "cpu")
    base = open_base(tuned.base_name, None, "cpu", prompt_format=None, system=None, settings=tuned.settings)
    assert not base.is_tuned
    expected, tuned_answer = answer_of(base), answer_of(tuned)
    assert tuned_answer.text != expected.text
    with tuned.base_beside():
        assert answer_of(tuned) == expected
    assert answer_of(tuned) == tuned_answer
    lifted = tuned.as_base()
    assert answer_of(lifted) == expected
    assert not lifted.is_tuned
    assert (lifted.name, lifted.template) == (tuned.base_name, tuned.template)


def test_a_base_is_its_own_base(opened: OpenModel) -> None:
    assert opened.as_base() is opened
    assert opened.transformer is opened.model
    with opened.base_beside():
        assert not opened.is_tuned


def test_a_base_is_asked_through_the_strategys_template(opened: OpenModel, tiny_base: Path) -> None:
    assert opened.name == opened.base_name == str(tiny_base)
    assert opened.max_length == 256
    messages = [Message("user", "x"), Message("assistant", "y")]
    assert opened.template.render(messages) == "Question: x\nAnswer: y<|end|>"


def test_other_settings_leave_the_rest(opened: OpenModel) -> None:
    settings = GenerationSettings(1, 0.0, 1.0, None, 1.0)
    other = opened.with_settings(settings)
    assert other.settings == settings
    assert other.model is opened.model
    assert opened.settings != settings


@pytest.mark.parametrize(
    "open_it",
    [
        lambda folder: open_final_model(folder, "cpu"),
        lambda folder: open_base(
            str(folder / "gone"),
            None,
            "cpu",
            prompt_format=None,
            system=None,
            settings=GenerationSettings(1, 0.0, 1.0, None, 1.0),
        ),
    ],
    ids=["final-model", "base"],
)
def test_a_model_that_is_not_there_is_refused(tmp_path: Path, open_it: Callable[[Path], Any]) -> None:
    with pytest.raises(ModelError):
        open_it(tmp_path)


def test_a_base_of_a_final_model_is_found_by_the_name_it_was_trained_under(final_model: Path) -> None:
    opened = open_final_model(final_model, "cpu")
    assert find_base(opened.base_name) == Base(opened.base_name, opened.base_name)


def test_ctrl_c_ends_an_answer_and_a_second_one_everything(opened: OpenModel) -> None:
    answerer = InterruptibleAnswerer(opened.answerer)
    messages, pieces = [Message("user", "What is asthma?")], []

    def interrupt(piece: str, times: int = 1) -> None:
        pieces.append(piece)
        for _ in range(times if len(pieces) == 2 else 0):
            signal.raise_signal(signal.SIGINT)

    answer = answerer.stream(messages, opened.settings, interrupt)
    assert answer.ended_by == INTERRUPTED and "".join(pieces) == answer.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    pieces.clear()
    with pytest.raises(KeyboardInterrupt):
        answerer.stream(messages, opened.settings, lambda piece: interrupt(piece, 2))
    assert answerer.stream(messages, opened.settings, lambda piece: None).ended_by != INTERRUPTED


def test_after_ctrl_c_no_later_batch_is_answered(opened: OpenModel) -> None:
    answerer = InterruptibleAnswerer(opened.answerer)
    asked = [[Message("user", "What is asthma?")]] * 2
    whole = answerer.answer_all(asked, opened.settings, None, lambda by: signal.raise_signal(signal.SIGINT))
    assert not any(answer.is_interrupted for answer in whole)
    after = answerer.answer_all(asked, opened.settings, None, lambda by: None)
    assert after == [Answer("", INTERRUPTED, 0)] * 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_ctrl_c_is_ignored_it_stays_so(opened: OpenModel) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        InterruptibleAnswerer(opened.answerer).stream(
            [Message("user", "x")], opened.settings, lambda piece: signal.raise_signal(signal.SIGINT)
        )
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
