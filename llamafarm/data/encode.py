"""Conversations to token ids, each token marked as trained on or not.

What is trained on comes from the renderings of `template`: the assistant's turns and their ends. The text of
every prompt is tokenized by itself as well, and must be how the row's ids begin: that is what the model is
shown when it is asked, so anything else would train on prompts that never occur.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llamafarm.data.conversation import Conversation
from llamafarm.data.template import ChatTemplate, Rendering
from llamafarm.errors import TemplateError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Texts to lists of token ids, without any special token that the text does not hold itself.
Tokenize = Callable[[Sequence[str]], Sequence[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row as the model sees it. Axes: T, its tokens. `is_supervised_T` marks the tokens trained on."""

    token_ids_T: NDArray[np.int32]
    is_supervised_T: NDArray[np.bool_]
    row_number: int

    @property
    def num_tokens(self) -> int:
        """Return the row's length in tokens."""
        return len(self.token_ids_T)

    @property
    def num_supervised_tokens(self) -> int:
        """Return how many tokens are trained on. The first of a row never is: nothing predicts it."""
        return int(self.is_supervised_T[1:].sum())


def encode_conversations(
    conversations: Sequence[Conversation], template: ChatTemplate, tokenize: Tokenize
) -> list[EncodedRow]:
    """Render and tokenize conversations.

    Raises `TemplateError`, naming the row, where prompt and answer melt into one token.
    """
    renderings = [template.render_conversation(conversation) for conversation in conversations]
    texts = list(_texts_to_tokenize(renderings))
    # One call for all texts: a fast tokenizer works on a batch with every core.
    ids_of = dict(zip(texts, tokenize(texts), strict=True))
    return [
        _encode_row(rendering, conversation.row_number, ids_of)
        for rendering, conversation in zip(renderings, conversations, strict=True)
    ]


def _texts_to_tokenize(renderings: Sequence[Rendering]) -> dict[str, None]:
    texts: dict[str, None] = {}
    for rendering in renderings:
        texts[rendering.text] = None
        for span in rendering.assistant_spans:
            texts.update((rendering.text[:end], None) for end in span)
    return texts


def _encode_row(rendering: Rendering, row_number: int, ids_of: dict[str, Sequence[int]]) -> EncodedRow:
    token_ids = ids_of[rendering.text]
    is_supervised_T = np.zeros(len(token_ids), dtype=np.bool_)
    for span in rendering.assistant_spans:
        start, end = (
            _num_leading_tokens(rendering.text[:cut], token_ids, row_number, ids_of) for cut in span
        )
        is_supervised_T[start:end] = True
    return EncodedRow(np.asarray(token_ids, dtype=np.int32), is_supervised_T, row_number)


def _num_leading_tokens(
    prefix: str, token_ids: Sequence[int], row_number: int, ids_of: dict[str, Sequence[int]]
) -> int:
    prefix_ids = ids_of[prefix]
    if list(token_ids[: len(prefix_ids)]) != list(prefix_ids):
        raise TemplateError(
            f"the tokenizer joins the end of a prompt and the answer into one token, after {prefix[-30:]!r}",
            where=f"row {row_number}",
            remedy="End the prompt part of prompt_template.format with a line break or a colon and a blank.",
        )
    return len(prefix_ids)
