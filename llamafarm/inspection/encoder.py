"""What turns rows into tokens for somebody who looks at them: the same that training uses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llamafarm.data.conversation import Conversation
from llamafarm.data.encoding.block import RowEncoding
from llamafarm.data.encoding.encode import encode_separately
from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.model.load import Base

# Few, so that the first ones are shown at once.
_ROWS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class RowEncoder:
    """A base model's tokenizer and template, and how rows become tokens with them."""

    base: Base
    tokenizer: Any
    template_origin: str
    encoding: RowEncoding

    def encode(
        self, conversations: Iterable[Conversation]
    ) -> Iterator[tuple[Conversation, list[EncodedRow]]]:
        """Yield each conversation with the rows that it is trained on in, a few at a time."""
        encoding, left = self.encoding, iter(conversations)
        while batch := list(islice(left, _ROWS_AT_ONCE)):
            rows = encode_separately(batch, encoding.template, encoding.encoder, encoding.trained)
            yield from zip(batch, rows, strict=True)
