"""Conversations to token ids, each token marked as trained on or not.

What is trained on comes from the renderings of `template`: the assistant's turns and their ends. The text of
every prompt is tokenized by itself as well, and must be how the row's ids begin: that is what the model is
shown when it is asked, so anything else would train on prompts that never occur.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llamafarm.data.conversation import Conversation
from llamafarm.data.encoding.template import EVERY_ANSWER, ChatTemplate, Rendering, TrainedPart
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
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    tokenize: Tokenize,
    trained: TrainedPart = EVERY_ANSWER,
) -> list[EncodedRow]:
    """Render and tokenize conversations, each to one row or, where its template asks for it, to several.

    Raises `TemplateError`, naming the row, where prompt and answer melt into one token.
    """
    return [row for rows in encode_separately(conversations, template, tokenize, trained) for row in rows]


def encode_separately(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    tokenize: Tokenize,
    trained: TrainedPart = EVERY_ANSWER,
) -> list[list[EncodedRow]]:
    """Return the rows of each conversation, as `encode_conversations` does."""
    rendered = [template.render_rows(conversation, trained) for conversation in conversations]
    texts = list(_texts_to_tokenize(rendering for renderings in rendered for rendering in renderings))
    # One call for all texts: a fast tokenizer works on a batch with every core.
    ids_of = dict(zip(texts, tokenize(texts), strict=True))
    return [
        [_encode_row(rendering, conversation.row_number, ids_of) for rendering in renderings]
        for renderings, conversation in zip(rendered, conversations, strict=True)
    ]


def _texts_to_tokenize(renderings: Iterable[Rendering]) -> dict[str, None]:
    texts: dict[str, None] = {}
    for rendering in renderings:
        texts[rendering.text] = None
        for span in () if rendering.is_whole else rendering.trained_spans:
            texts.update((rendering.text[:end], None) for end in span)
    return texts


def _encode_row(rendering: Rendering, row_number: int, ids_of: dict[str, Sequence[int]]) -> EncodedRow:
    token_ids = ids_of[rendering.text]
    is_supervised_T = np.full(len(token_ids), rendering.is_whole, dtype=np.bool_)
    for span in () if rendering.is_whole else rendering.trained_spans:
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
