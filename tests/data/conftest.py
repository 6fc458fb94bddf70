"""Tokenizers: the embedded model's, and with it the control tokens of well-known chat formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

CONTROL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
)


@pytest.fixture(scope="session")
def tokenizer(tiny_base: Path) -> Any:
    """The embedded model's tokenizer; not to be changed."""
    from llamafarm.model.load import Base, load_tokenizer

    return load_tokenizer(Base("tiny", str(tiny_base)))


@pytest.fixture(scope="session")
def chat_tokenizer(tiny_base: Path) -> Any:
    """The embedded model's tokenizer with the control tokens of well-known chat formats."""
    from llamafarm.model.load import Base, load_tokenizer

    tokenizer = load_tokenizer(Base("tiny", str(tiny_base)))
    tokenizer.add_tokens(list(CONTROL_TOKENS), special_tokens=True)
    return tokenizer
