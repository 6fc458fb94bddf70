"""What turns rows into tokens for somebody who looks at them: the same that training uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llamafarm.data.conversation import Conversation
from llamafarm.data.encoding.encode import EncodedRow, encode_separately
from llamafarm.data.encoding.template import EVERY_ANSWER, ChatTemplate, TrainedPart
from llamafarm.model.load import Base, load_tokenizer, text_encoder
from llamafarm.model.prompt import build_template

_ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """A tokenizer with its template, and which part of a row is trained on."""

    base_name: str
    tokenizer: Any
    template: ChatTemplate
    template_origin: str
    trained: TrainedPart = EVERY_ANSWER

    def encode(
        self, conversations: Iterable[Conversation]
    ) -> Iterator[tuple[Conversation, list[EncodedRow]]]:
        """Yield each conversation with the rows that it is trained on in, a few hundred at a time."""
        encoder = text_encoder(self.tokenizer)
        left = iter(conversations)
        while batch := list(islice(left, _ROWS_AT_ONCE)):
            yield from zip(batch, encode_separately(batch, self.template, encoder, self.trained), strict=True)


def open_encoder(
    base: Base,
    prompt_format: str | None = None,
    system: str | None = None,
    trained: TrainedPart = EVERY_ANSWER,
) -> RowEncoder:
    """Return the encoder of a base model. Raises `ModelError` and `TemplateError`."""
    tokenizer = load_tokenizer(base)
    template, origin = build_template(tokenizer, prompt_format, system)
    return RowEncoder(base.name, tokenizer, template, origin, trained)
