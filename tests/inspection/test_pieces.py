"""A row in pieces is the row: nothing is lost where a character spans tokens, and the marks are the row's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafarm.data.encoding.rows import EncodedRow
from llamafarm.inspection.page import write_page
from llamafarm.inspection.pieces import Piece, merge_pieces, split_into_pieces
from llamafarm.model.load import find_base, load_tokenizer

END = "<|end|>"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The embedded model's, whose tokens are bytes where a character is rare."""
    return load_tokenizer(find_base(None))


def encoded(tokenizer: Any, text: str, num_shown: int) -> EncodedRow:
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return EncodedRow(np.asarray(token_ids, np.int32), np.arange(len(token_ids)) >= num_shown, 1)


@settings(max_examples=80, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=30),
    shown=st.integers(0, 9),
)
def test_the_pieces_together_are_the_text(tokenizer: Any, text: str, shown: int) -> None:
    row = encoded(tokenizer, text + END, shown)
    pieces = list(split_into_pieces(row, tokenizer))
    whole = tokenizer.decode(row.token_ids_T, clean_up_tokenization_spaces=False)
    assert "".join(piece.text for piece in pieces) == whole
    assert sum(piece.num_tokens for piece in pieces) == row.num_tokens
    assert pieces[-1].is_special and pieces[-1].text == END
    merged = list(merge_pieces(iter(pieces)))
    assert "".join(piece.text for piece in merged) == whole
    assert sum(piece.num_tokens for piece in merged) == row.num_tokens


def test_a_character_of_several_tokens_is_one_piece(tokenizer: Any) -> None:
    row = encoded(tokenizer, "a🙂b", 0)
    assert row.num_tokens > 3
    assert "🙂" in [piece.text for piece in split_into_pieces(row, tokenizer)]


def test_what_is_trained_on_is_marked_and_runs_are_joined(tokenizer: Any) -> None:
    prompt = len(tokenizer("What is it?", add_special_tokens=False)["input_ids"])
    pieces = merge_pieces(split_into_pieces(encoded(tokenizer, f"What is it? That.{END}", prompt), tokenizer))
    assert [(piece.text, piece.is_trained, piece.is_special) for piece in pieces] == [
        ("What is it?", False, False),
        (" That.", True, False),
        (END, True, True),
    ]


def test_the_page_is_whole_by_itself_and_says_nothing_as_markup() -> None:
    pieces = [Piece("<b>&\n", False, False), Piece("x</pre>", True, False), Piece("<|end|>", True, True)]
    page = write_page("a <title>", "sub & title", [("row 1", "3 tokens", pieces)])
    assert (
        "&lt;b&gt;&amp;<i>⏎</i>\n<mark>x&lt;/pre&gt;</mark><mark class=special>&lt;|end|&gt;</mark>" in page
    )
    assert "a &lt;title&gt;" in page
    assert "http" not in page and "<script" not in page
