"""Conversations to token ids, each token marked as trained on or not.

What is trained on comes from the renderings of `template`: the assistant's turns and their ends. The text of
every prompt is tokenized by itself as well, and must be how the row's ids begin: that is what the model is
shown when it is asked, so anything else would train on prompts that never occur.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llamafarm.data.conversation import Conversation
from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.data.encoding.template import EVERY_ANSWER, ChatTemplate, Rendering, TrainedPart
from llamafarm.data.encoding.tokenization import CutIds, CutText, TextEncoder
from llamafarm.errors import TemplateError


def encode_conversations(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    encoder: TextEncoder,
    trained: TrainedPart = EVERY_ANSWER,
) -> list[EncodedRow]:
    """Render and tokenize conversations, each to one row or, where its template asks for it, to several.

    Raises `TemplateError`, naming the row, where prompt and answer melt into one token.
    """
    return [row for rows in encode_separately(conversations, template, encoder, trained) for row in rows]


def encode_separately(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    encoder: TextEncoder,
    trained: TrainedPart = EVERY_ANSWER,
) -> list[list[EncodedRow]]:
    """Return the rows of each conversation, as `encode_conversations` does."""
    rendered = [template.render_rows(conversation, trained) for conversation in conversations]
    texts = [_cut(rendering) for renderings in rendered for rendering in renderings]
    # One call for all texts: most encoders are faster on a batch.
    encoded = iter(zip(texts, encoder.encode(texts), strict=True))
    return [
        [
            _encode_row(*next(encoded), conversation.row_number, is_whole=rendering.is_whole)
            for rendering in renderings
        ]
        for renderings, conversation in zip(rendered, conversations, strict=True)
    ]


def _cut(rendering: Rendering) -> CutText:
    """Return a row's text with a cut at the beginning and the end of each span that is trained on."""
    spans = () if rendering.is_whole else rendering.trained_spans
    return CutText(rendering.text, tuple(cut for span in spans for cut in span))


def _encode_row(cut_text: CutText, encoded: CutIds, row_number: int, *, is_whole: bool) -> EncodedRow:
    text, cuts = cut_text
    is_supervised_T = np.full(len(encoded.token_ids), is_whole, dtype=np.bool_)
    for place in range(0, len(cuts), 2):
        start, end = (
            _num_or_raise(encoded.num_before[place + side], text[: cuts[place + side]], row_number)
            for side in (0, 1)
        )
        is_supervised_T[start:end] = True
    return EncodedRow(encoded.token_ids, is_supervised_T, row_number)


def _num_or_raise(num_before: int | None, beginning: str, row_number: int) -> int:
    if num_before is None:
        raise TemplateError(
            f"the tokenizer joins the end of a prompt and the answer into one token, after "
            f"{beginning[-30:]!r}",
            where=f"row {row_number}",
            remedy="Let a line break end the prompt in prompt_template.format: {input}\\nAnswer:\\n{output}.",
        )
    return num_before
