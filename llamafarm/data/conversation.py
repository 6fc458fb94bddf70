"""What every row of every data file becomes: a conversation of messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One turn, of role `system`, `user`, `assistant` or `tool`.

    `input` is the second field that Alpaca rows have beside the instruction. `weight` is 0 for an answer that
    is shown and not trained on, as OpenAI's files mark it. `extras` are the further fields that chat
    templates read (`tool_calls`, `tool_call_id`, `name`, `reasoning_content`), as JSON has them.
    """

    role: str
    content: str
    input: str = ""
    weight: float = 1.0
    extras: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row of a data file. `row_number` is the line or row it stands on, from 1.

    `tools` are the functions that the model is told of, as JSON has them. A row of plain text, which no
    template is put around and all of which is trained on, has its one message in the role `text`.
    """

    messages: tuple[Message, ...]
    row_number: int
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def is_text(self) -> bool:
        """Return whether this is plain text rather than turns."""
        return self.messages[0].role == TEXT


TEXT = "text"
