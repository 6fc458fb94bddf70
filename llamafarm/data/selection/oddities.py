"""What is odd about a text, whatever its language: the traces of a wrong conversion, and loops."""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import eq

from llamafarm.data.conversation import Conversation

# UTF-8 that was read as Latin-1: the first byte of a character as Ã, Â or â, and what follows it.
_MOJIBAKE = re.compile("[ÃÂ][\u0080-\u00bf]|â[\u0080-\u00bf€™œž]")
# Tags that end something, line breaks and entities; `<p>` alone may be the name of a key.
_HTML = re.compile(
    r"</(?:p|div|span|a|li|ul|ol|td|tr|table|h[1-6]|b|i|strong|em)>|<br\s*/?>|&(?:nbsp|amp|lt|gt|quot);",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
# So many words, so many times right after each other.
_LOOP_WORDS, _LOOPS = 4, 4


def repeats_itself(text: str) -> bool:
    """Return whether some words in a row come again and again, right after each other."""
    words = text.split()
    for size in range(1, _LOOP_WORDS + 1):
        num_equal = size * (_LOOPS - 1)
        # So many words in a row that are equal to later ones have one in every so many words.
        if any(map(eq, words[::num_equal], words[size::num_equal])):
            is_equal = bytes(map(eq, words, words[size:]))
            if bytes([True] * num_equal) in is_equal:
                return True
    return False


WRONG_LETTERS, HTML, CONTROL, LOOP = (
    "wrongly decoded letters, as Ã© for é",
    "HTML",
    "control characters",
    "the same words again and again",
)
TEXT_ODDITIES: dict[str, Callable[[str], object]] = {
    WRONG_LETTERS: _MOJIBAKE.search,
    HTML: _HTML.search,
    CONTROL: _CONTROL.search,
    LOOP: repeats_itself,
}
"""Each oddity's name, and what finds it in a text: something true if it is there."""


def oddity_bits(conversation: Conversation) -> int:
    """Return which oddities a conversation has: bit n stands for entry n of `TEXT_ODDITIES`."""
    texts = [message.content for message in conversation.messages]
    return sum(any(map(is_odd, texts)) << bit for bit, is_odd in enumerate(TEXT_ODDITIES.values()))
