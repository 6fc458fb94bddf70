"""Which prompt template a model gets: the strategy's, its own, or the plain one."""

from __future__ import annotations

from typing import Any

import pytest

from llamafarm.data.conversation import Message
from llamafarm.errors import TemplateError
from llamafarm.model.prompt import build_template

TURNS = Message("user", "What?"), Message("assistant", "That.")


def test_the_strategys_format_comes_first(tokenizer: Any) -> None:
    template, origin = build_template(tokenizer, "Q: {input}\nA: {output}", None)
    assert template.render(TURNS) == "Q: What?\nA: That.<|end|>"
    assert origin == "prompt_template.format"


def test_else_the_models_own_template_is_taken_as_it_stands(tokenizer: Any) -> None:
    template, origin = build_template(tokenizer, None, None)
    assert template.source == tokenizer.chat_template
    assert "base model" in origin


def test_else_a_plain_one_is_taken_and_that_is_said(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    template, origin = build_template(tokenizer, None, None)
    assert template.render(TURNS) == "User: What?\nAssistant: That.<|end|>"
    assert "plain" in origin


@pytest.mark.parametrize("prompt_format", [None, "{system}\n\nQ: {input}\nA: {output}"])
def test_a_system_text_is_part_of_the_template(tokenizer: Any, prompt_format: str | None) -> None:
    template, _ = build_template(tokenizer, prompt_format, "It's {{ so }}.")
    tokenizer.chat_template = template.source
    by_transformers = tokenizer.apply_chat_template([{"role": "user", "content": "What?"}], tokenize=False)
    assert template.render(TURNS[:1]) == by_transformers
    assert "It's {{ so }}.\n\n" in by_transformers
    own = template.render([Message("system", "Own."), *TURNS])
    assert "Own.\n\n" in own
    assert "so" not in own


def test_a_template_of_the_model_that_never_ends_an_answer_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(TemplateError):
        build_template(tokenizer, None, None)
    template, _ = build_template(tokenizer, "{input}\n{output}", None)
    assert template.end_of_turn == tokenizer.eos_token
