"""Texts to token ids, with the number of tokens before given places of them.

`WholeTexts` asks a tokenizer for every text and for each of its beginnings; `words` has what is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from llamafarm.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Texts to lists of token ids, without any special token that the text does not hold itself.
Tokenize = Callable[[Sequence[str]], Sequence[Sequence[int]]]


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise `ModelError` where `tokenizers` panics, as on a pattern that it gives up: no `Exception`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # nowhere to be imported from
            raise
        reason = next(iter(str(error).splitlines()), "")
        raise ModelError(
            f"the tokenizer breaks down: {reason[:200]}",
            where="tokenizer.json",
            remedy="Look at where the model comes from, and at the patterns in its tokenizer.json.",
        ) from None


class CutText(NamedTuple):
    """A text, and places in it in rising order: numbers of characters from its beginning."""

    text: str
    cuts: tuple[int, ...] = ()


class CutIds(NamedTuple):
    """A text's token ids, and how many of them its beginning up to each cut has.

    None where that beginning, tokenized alone, is not how the ids of the whole text begin.
    """

    token_ids: NDArray[np.int32]
    num_before: tuple[int | None, ...]


class TextEncoder(Protocol):
    """What turns texts into token ids."""

    def encode(self, texts: Sequence[CutText]) -> list[CutIds]:
        """Return the token ids of each text, no special token added, and of its cuts."""


class WholeTexts:
    """An encoder that asks a tokenizer for every text, and for every beginning, as a whole."""

    def __init__(self, tokenize: Tokenize) -> None:
        self._tokenize = tokenize

    def encode(self, texts: Sequence[CutText]) -> list[CutIds]:
        """Return the token ids of each text and of its cuts."""
        parts = dict.fromkeys(text[:cut] for text, cuts in texts for cut in (*cuts, len(text)))
        # One call for all of them: a fast tokenizer works on a batch with every core.
        ids_of = dict(zip(parts, self._tokenize(list(parts)), strict=True))
        return [
            CutIds(
                np.asarray(token_ids := ids_of[text], np.int32),
                tuple(_num_leading(ids_of[text[:cut]], token_ids) for cut in cuts),
            )
            for text, cuts in texts
        ]


def _num_leading(beginning: Sequence[int], token_ids: Sequence[int]) -> int | None:
    num_tokens = len(beginning)
    return num_tokens if list(token_ids[:num_tokens]) == list(beginning) else None
