"""One prompt template for training, completion and export.

Whatever a strategy says becomes one Jinja chat template: `prompt_format` turns the guide's
`prompt_template.format` into one, otherwise the model's own is taken. `ChatTemplate` renders it, and tells
from renderings alone which characters the assistant writes, its end of turn included. The template reads
`messages`, `tools`, `add_generation_prompt` and the tokenizer's special tokens, and nothing of the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError as JinjaError

from llamafarm.data.conversation import Conversation, Message
from llamafarm.data.encoding.sandbox import TemplateEnvironment
from llamafarm.errors import TemplateError

# Stands for an answer while the text that a template puts around answers is being found.
_PROBE = "PROBEANSWER"
DEFAULT_JOINER = "\n\n"
# What Python raises where a template nests without end, or counts beyond every number.
_TOO_MUCH = (RecursionError, OverflowError, MemoryError)


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation as text, and the half-open character spans of it that are trained on.

    A span runs from the end of a prompt, as it stands when the model is asked, to the end of that turn; only
    with `is_whole` it is the text from end to end, prompts and all.
    """

    text: str
    trained_spans: tuple[tuple[int, int], ...]
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class TrainedPart:
    """Which part of a row is trained on: every answer, the last one only, or all of its text."""

    is_last_answer_only: bool = False
    includes_prompt: bool = False


EVERY_ANSWER = TrainedPart()


class ChatTemplate:
    """A compiled chat template.

    `special_tokens` maps names such as `eos_token` to their text; `control_tokens` are all texts that the
    tokenizer knows as one special token, among which the end of a turn is looked for. `joiner` stands
    between an Alpaca row's instruction and its input; `adds_bos` puts the beginning-of-text token before rows
    of plain text. Raises `TemplateError` if the template cannot be rendered or does not end the assistant's
    turn with a control token.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str],
        control_tokens: Sequence[str],
        joiner: str = DEFAULT_JOINER,
        adds_bos: bool = False,
    ) -> None:
        self.source = source
        self.joiner = joiner
        self._special_tokens = dict(special_tokens)
        self._adds_bos = adds_bos
        try:
            self._environment = TemplateEnvironment()
            self._template = self._environment.from_string(source)
        except (JinjaError, *_TOO_MUCH) as error:
            raise TemplateError(
                f"the chat template is not valid Jinja: {error}",
                where="the base model's chat template",
                remedy="Give the strategy a prompt_template.format of its own.",
            ) from None
        self.end_of_turn, self._after_end_of_turn = self._find_end_of_turn(control_tokens)

    def recipe(self) -> dict[str, Any]:
        """Return everything that renderings follow from, as JSON has it and `from_recipe` takes it."""
        return {
            "source": self.source,
            "special_tokens": dict(sorted(self._special_tokens.items())),
            "control_tokens": [self.end_of_turn],
            "joiner": self.joiner,
            "adds_bos": self._adds_bos,
        }

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> ChatTemplate:
        """Return the template that gave a recipe."""
        return cls(recipe["source"], **{name: recipe[name] for name in recipe if name != "source"})

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Return the text of `messages`; with `add_generation_prompt`, up to where the answer begins."""
        turns = [
            {"role": message.role, "content": self._content(message), **(message.extras or {})}
            for message in messages
        ]
        self._environment.renew_budget()
        try:
            return self._template.render(
                messages=turns,
                tools=list(tools) or None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (JinjaError, TypeError, ValueError, *_TOO_MUCH) as error:
            raise TemplateError(
                f"the chat template cannot render {', '.join(str(turn['role']) for turn in turns)}: {error}",
                where="the chat template",
                remedy="Check the roles of the rows, or give the strategy a prompt_template.format.",
            ) from None

    def render_rows(self, conversation: Conversation, trained: TrainedPart = EVERY_ANSWER) -> list[Rendering]:
        """Return a conversation as the rows that it is trained on in.

        That is one row, unless the template renders a turn differently once others follow, as those do that
        leave earlier thinking out: then each answer is the last one of a row of its own, just as it was when
        the model gave it. Raises `TemplateError` if a prompt is not how the row with its answer begins.
        """
        if conversation.is_text:
            return [self._render_text(conversation)]
        if trained.includes_prompt:
            text = self.render(conversation.messages, tools=conversation.tools)
            return [Rendering(text, ((0, len(text)),), is_whole=True)]
        answers = [
            index
            for index, message in enumerate(conversation.messages)
            if message.role == "assistant" and message.weight
        ]
        if trained.is_last_answer_only:
            answers = answers[-1:]
        whole = self._render_together(conversation, answers)
        return [whole] if whole else [self._render_last(conversation, answer) for answer in answers]

    def _render_text(self, conversation: Conversation) -> Rendering:
        bos = self._special_tokens.get("bos_token", "") if self._adds_bos else ""
        text = bos + conversation.messages[0].content + self._special_tokens.get("eos_token", "")
        return Rendering(text, ((0, len(text)),), is_whole=True)

    def _render_together(self, conversation: Conversation, answers: Sequence[int]) -> Rendering | None:
        """Return the row with all of its answers; None if one is not what it was when it was the last."""
        messages, tools = conversation.messages, conversation.tools
        text = self.render(messages, tools=tools)
        spans = []
        for index in answers:
            prompt = self.render(messages[:index], add_generation_prompt=True, tools=tools)
            is_last = index + 1 == len(messages)
            through = text if is_last else self.render(messages[: index + 1], tools=tools)
            if not text.startswith(through):
                return None
            spans.append(self._span(prompt, through, conversation.row_number, index))
        return Rendering(text, tuple(spans))

    def _render_last(self, conversation: Conversation, index: int) -> Rendering:
        messages, tools = conversation.messages, conversation.tools
        prompt = self.render(messages[:index], add_generation_prompt=True, tools=tools)
        through = self.render(messages[: index + 1], tools=tools)
        return Rendering(through, (self._span(prompt, through, conversation.row_number, index),))

    def _span(self, prompt: str, through: str, row_number: int, index: int) -> tuple[int, int]:
        """Return where an answer stands in the text that ends with it, its end of turn included."""
        if not through.startswith(prompt):
            raise TemplateError(
                "the chat template renders a prompt differently once its answer follows, so that the answer "
                "cannot be told from the prompt exactly",
                where=f"row {row_number}, message {index + 1}",
                remedy="Give the strategy a prompt_template.format.",
            )
        return len(prompt), len(through) - len(self._after_end_of_turn)

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
