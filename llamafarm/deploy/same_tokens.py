"""Whether a conversation becomes the same token ids here and in llama.cpp.

The template that was trained with and the one in the file are the same text; two programs render it and cut
it into tokens, each in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamafarm.data.conversation import Conversation, Message
from llamafarm.deploy.source import Source
from llamafarm.errors import ModelError, TemplateError
from llamafarm.inference.llamacpp import LlamaServer
from llamafarm.inference.served import as_turns

_MOST_ROWS = 32
# What is asked of every model: turns, a system message, an empty one, Unicode, blanks, code.
CONVERSATIONS: Sequence[tuple[Message, ...]] = (
    (Message("user", "What is this?"),),
    (Message("system", "Answer in one word."), Message("user", "Is water wet?")),
    (Message("user", "1, 2, 3"), Message("assistant", "4"), Message("user", "And then?")),
    (Message("user", "Grüße, 你好, مرحبا, 👩‍🔬 – naïve “quotes” ½ £ €"),),
    (Message("system", ""), Message("user", "x")),
    (Message("user", "  two  blanks,\ttab\n\nand lines\n"),),
    (Message("user", "def f(x):\n    return x ** 2  # {{ code }} <b>&amp;</b>"),),
)
_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find a page.",
        "parameters": {
            "type": "object",
            "properties": {"words": {"type": "string"}},
            "required": ["words"],
        },
    },
}


def check_same_tokens(
    source: Source, server: LlamaServer, conversations: Sequence[Conversation], file: Path
) -> int:
    """Compare the token ids of conversations, `conversations` among them; return how many there were.

    What the template refuses is not compared. Raises `ModelError` naming the first other token.
    """
    bos = source.tokenizer.bos_token if source.begins_with_bos else ""
    num_compared = 0
    for messages, tools in _asked(source, conversations):
        try:
            text = source.template.render(messages, add_generation_prompt=True, tools=tools)
        except TemplateError:
            continue
        theirs = bos + server.apply_template(as_turns(messages), tools).removeprefix(bos)
        our_ids = source.tokenizer(text, add_special_tokens=False)["input_ids"]
        their_ids = server.tokenize(theirs)
        if our_ids != their_ids:
            raise _other_tokens(file, text, theirs, our_ids, their_ids)
        num_compared += 1
    return num_compared


def _asked(
    source: Source, conversations: Sequence[Conversation]
) -> Iterator[tuple[Sequence[Message], Sequence[Mapping[str, Any]]]]:
    """Yield the messages and tools that are rendered: fixed ones, then the user's."""
    for messages in CONVERSATIONS:
        yield messages, ()
    if "tools" in source.template.source:
        yield CONVERSATIONS[0], (_TOOL,)
    for conversation in conversations[:_MOST_ROWS]:
        if not conversation.is_text:
            yield prompt_of(conversation), conversation.tools


def prompt_of(conversation: Conversation) -> tuple[Message, ...]:
    """Return what stands before the last answer of a row."""
    messages = conversation.messages
    return messages[:-1] if messages[-1].role == "assistant" else messages


def _other_tokens(
    file: Path, text: str, theirs: str, our_ids: Sequence[int], their_ids: Sequence[int]
) -> ModelError:
    pairs = enumerate(zip(our_ids, their_ids, strict=False))
    place = next((n for n, (ours, other) in pairs if ours != other), min(len(our_ids), len(their_ids)))
    what = "renders" if text != theirs else "cuts"
    shown = f"{theirs[:120]!r} for {text[:120]!r}" if text != theirs else repr(text[:120])
    return ModelError(
        f"llama.cpp {what} a conversation otherwise than it was trained: token {place + 1} is "
        f"{list(their_ids[place : place + 3])} and not {list(our_ids[place : place + 3])} ({shown})",
        where=str(file),
        remedy="Serve the model with transformers, or give the strategy a plain prompt_template.format.",
    )
