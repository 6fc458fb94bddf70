"""The one prompt template: the strategy's own, else the model's chat template, else a plain one."""

from __future__ import annotations

from typing import Any

from llamafarm.data.encoding.prompt_format import compile_prompt_template, with_default_system
from llamafarm.data.encoding.template import ChatTemplate
from llamafarm.model.load import adds_bos, control_token_texts, special_token_texts

PLAIN_FORMAT = "User: {input}\nAssistant: {output}"


def build_template(tokenizer: Any, prompt_format: str | None, system: str | None) -> tuple[ChatTemplate, str]:
    """Return the template, and where it comes from.

    `prompt_format` is the strategy's `prompt_template.format`, `system` the system message of conversations
    that have none. Raises `TemplateError` for a template that cannot be rendered or never ends an answer.
    """
    joiner = "\n\n"
    if prompt_format is not None:
        origin = "prompt_template.format"
    elif tokenizer.chat_template:
        origin = "the base model's chat template"
    else:
        prompt_format, origin = PLAIN_FORMAT, f"the plain default {PLAIN_FORMAT!r}: the base model has none"
    if prompt_format is not None:
        compiled = compile_prompt_template(prompt_format, adds_bos=adds_bos(tokenizer))
        source, joiner = compiled.source, compiled.joiner
    else:
        source = str(tokenizer.chat_template)
    if system is not None:
        source = with_default_system(source, system)
    return template_from_source(tokenizer, source, joiner), origin


def template_from_source(tokenizer: Any, source: str, joiner: str) -> ChatTemplate:
    """Return a chat template with the special tokens of `tokenizer`."""
    return ChatTemplate(
        source,
        special_tokens=special_token_texts(tokenizer),
        control_tokens=control_token_texts(tokenizer),
        joiner=joiner,
        adds_bos=adds_bos(tokenizer),
    )
