"""One prompt template for training, completion and export.

Whatever a strategy says becomes one Jinja chat template: `compile_prompt_template` turns the guide's
`prompt_template.format` into one, otherwise the model's own is taken. `ChatTemplate` renders it, and tells
from renderings alone which characters the assistant writes, its end of turn included. The template reads
`messages`, `add_generation_prompt` and the tokenizer's special tokens, and nothing of the machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llamafarm.data.conversation import Conversation, Message
from llamafarm.errors import TemplateError

# Stands for an answer while the text that a template puts around answers is being found.
_PROBE = "PROBEANSWER"
_DEFAULT_JOINER = "\n\n"


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as text, and the half-open character spans of it that the assistant writes."""

    text: str
    assistant_spans: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A compiled chat template.

    `special_tokens` maps names such as `eos_token` to their text; `control_tokens` are all texts that the
    tokenizer knows as one special token, among which the end of a turn is looked for. `joiner` stands
    between an Alpaca row's instruction and its input. Raises `TemplateError` if the template cannot be
    rendered or does not end the assistant's turn with a control token.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str],
        control_tokens: Sequence[str],
        joiner: str = _DEFAULT_JOINER,
    ) -> None:
        self.source = source
        self.joiner = joiner
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _new_environment().from_string(source)
        except JinjaError as error:
            raise TemplateError(
                f"the chat template is not valid Jinja: {error}",
                where="the base model's chat template",
                remedy="Give the strategy a prompt_template.format of its own.",
            ) from None
        self.end_of_turn, self._after_end_of_turn = self._find_end_of_turn(control_tokens)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Return the text of `messages`; with `add_generation_prompt`, up to where the answer begins."""
        turns = [{"role": message.role, "content": self._content(message)} for message in messages]
        try:
            return self._template.render(
                messages=turns, add_generation_prompt=add_generation_prompt, **self._special_tokens
            )
        except (JinjaError, TypeError, ValueError) as error:
            raise TemplateError(
                f"the chat template cannot render {', '.join(turn['role'] for turn in turns)}: {error}",
                where="the chat template",
                remedy="Check the roles of the rows, or give the strategy a prompt_template.format.",
            ) from None

    def render_conversation(self, conversation: Conversation) -> Rendering:
        """Render a row and find what the assistant writes in it, every turn with its end.

        Each span runs from the end of the generation prompt, just as it stands when the model is asked,
        to the end-of-turn token. Raises `TemplateError` if a prompt is not how the full text begins.
        """
        messages = conversation.messages
        text = self.render(messages)
        spans = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self.render(messages[:index], add_generation_prompt=True)
            through = text if index + 1 == len(messages) else self.render(messages[: index + 1])
            if not (text.startswith(through) and through.startswith(prompt)):
                raise TemplateError(
                    "the chat template renders a turn differently once others follow it, so that the "
                    "answer cannot be told from the prompt exactly",
                    where=f"row {conversation.row_number}, message {index + 1}",
                    remedy="Use rows of one turn, or give the strategy a prompt_template.format.",
                )
            spans.append((len(prompt), len(through) - len(self._after_end_of_turn)))
        return Rendering(text, tuple(spans))

    def _content(self, message: Message) -> str:
        if message.input.strip():
            return f"{message.content.strip()}{self.joiner}{message.input.strip()}"
        return message.content

    def _find_end_of_turn(self, control_tokens: Sequence[str]) -> tuple[str, str]:
        question, answer = Message("user", "x"), Message("assistant", _PROBE)
        text = self.render([question, answer])
        _, found, ending = text.rpartition(_PROBE)
        ends = [(ending.find(token), token) for token in control_tokens if token and token in ending]
        if not found or not ends:
            raise TemplateError(
                "the chat template does not end the assistant's turn with a special token, so that the "
                "model would never learn to stop",
                where=f"what it renders after an answer: {ending!r}",
                remedy="Give the strategy a prompt_template.format: its answers end with the model's "
                "end-of-text token.",
            )
        position, end_of_turn = min(ends, key=lambda end: (end[0], -len(end[1])))
        return end_of_turn, ending[position + len(end_of_turn) :]


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
    joiner = _DEFAULT_JOINER
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
        return "", _DEFAULT_JOINER, head
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


class _GenerationBlock(Extension):
    """Render what stands between `{% generation %}` and `{% endgeneration %}`, which some templates have.

    They mark answers that way; ours are found from renderings, for every template alike.
    """

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _new_environment() -> ImmutableSandboxedEnvironment:
    """Return what chat templates are written for: the names that transformers gives them.

    `strftime_now` is left out on purpose: with it, the same data would give other tokens tomorrow.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = _to_json
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise JinjaError(message)
