"""The guide's `prompt_template` as a Jinja chat template: its `format`, and a system message for all rows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llamafarm.data.encoding.template import DEFAULT_JOINER
from llamafarm.errors import TemplateError


def with_default_system(source: str, system: str) -> str:
    """Return a chat template that begins with `system` where the messages have no system message.

    It stands in the template itself, so that whoever renders it, here or in Ollama, gets what was trained.
    """
    turn = f"{{'role': 'system', 'content': {_quote_for_jinja(system)}}}"
    return (
        "{%- if not messages or messages[0]['role'] != 'system' %}"
        f"{{%- set messages = [{turn}] + messages %}}{{%- endif %}}{source}"
    )


@dataclass(frozen=True, slots=True)
class CompiledPrompt:
    """A `prompt_template.format` as a Jinja chat template, and what joins an instruction and its input."""

    source: str
    joiner: str


def compile_prompt_template(prompt_format: str, *, adds_bos: bool) -> CompiledPrompt:
    r"""Compile the guide's `prompt_template.format` into a Jinja chat template.

    `"Question: {input}\nAnswer: {output}"` becomes a template whose user turn is `Question: …`, whose
    generation prompt is `\nAnswer:` and whose assistant turn is ` …` and the end-of-text token. Blanks just
    before `{output}` belong to the answer: a tokenizer joins a blank to the word after it, so a prompt that
    ended in one would not be how any trained row begins. A system message goes where `{system}` stands,
    else before the first turn with an empty line between; without one nothing is rendered for it.
    """
    head, tail = _split_at(prompt_format, "{output}")
    tail = tail.rstrip()
    lead, system_end, body = _take_system(head)
    joiner = DEFAULT_JOINER
    if "{instruction}" in body and "{input}" in body:
        before, rest = _split_at(body, "{instruction}")
        joiner, after = _split_at(rest, "{input}")
    else:
        before, after = _split_at(body, "{instruction}" if "{instruction}" in body else "{input}")
    generation_prompt = after.rstrip(" \t")
    blanks = after[len(generation_prompt) :]

    quote = _quote_for_jinja
    bos = "{{- bos_token }}" if adds_bos else ""
    source = (
        f"{bos}{{%- for message in messages %}}"
        "{%- if message['role'] == 'system' %}"
        f"{{{{- {quote(lead)} + (message['content'] | trim) + {quote(system_end)} }}}}"
        "{%- elif message['role'] == 'user' %}"
        f"{{{{- {quote(before)} + (message['content'] | trim) }}}}"
        "{%- elif message['role'] == 'assistant' %}"
        f"{{{{- {quote(generation_prompt + blanks)} + (message['content'] | trim) + {quote(tail)} "
        "+ eos_token }}"
        "{%- else %}"
        "{{- raise_exception('the roles are system, user and assistant') }}"
        "{%- endif %}{%- endfor %}"
        f"{{%- if add_generation_prompt %}}{{{{- {quote(generation_prompt)} }}}}{{%- endif %}}"
    )
    return CompiledPrompt(source, joiner)


def _take_system(head: str) -> tuple[str, str, str]:
    """Split the text before `{output}` into what leads the system text in, what ends it, and the turn."""
    if "{system}" not in head:
        return "", DEFAULT_JOINER, head
    lead, rest = _split_at(head, "{system}")
    first_field = min(rest.find(field) for field in ("{instruction}", "{input}") if field in rest)
    between = rest[:first_field]
    # The system text's line ends at the last line break; what follows it introduces every turn.
    ending = between[: between.rfind("\n") + 1] or re.match(r"\s*", between).group()  # type: ignore[union-attr]
    return lead, ending, rest[len(ending) :]


def _split_at(text: str, field: str) -> tuple[str, str]:
    before, found, after = text.partition(field)
    if not found or field in after:
        raise TemplateError(
            f"prompt_template.format must contain {field} once, in the order {{system}}, {{instruction}}, "
            f"{{input}}, {{output}} (got {text!r})",
            where="prompt_template.format",
            remedy="For example: 'Question: {input}\\nAnswer: {output}'",
        )
    return before, after


def _quote_for_jinja(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    for character, escape in (("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        escaped = escaped.replace(character, escape)
    return f"'{escaped}'"
