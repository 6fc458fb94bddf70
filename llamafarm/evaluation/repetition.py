"""Texts that repeat themselves: the share of distinct n-grams, and answers that are caught in a loop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from llamafarm.evaluation.texts import split_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A stretch of the same words over and over is a loop when it comes so often, one after another, and is so
# long. "no, no, no" is none; a list with like beginnings is none, for its items differ.
_LEAST_TURNS = 4
_LEAST_WORDS = 16
_LONGEST_PHRASE = 256
# Within a word, as in "hahaha" or "0.333": characters, more of them, for rules of tables are long.
_LEAST_CHARACTERS = 100
# And it goes on to the end of the text, or is so much of it. Signs alone, as in a form's empty table, must be
# nearly all of it.
_LEAST_SHARE, _LEAST_SHARE_OF_SIGNS = 0.3, 0.9
_BLANKS = re.compile(r"[^\S\n]+")
_LINE_ENDS = re.compile(r"\s*\n\s*(?:\d+[.):]\s)?")


def distinct_share(texts: Sequence[str], n: int) -> float:
    """Return the distinct n-grams of words as a share of all in `texts`: 1 where none comes twice.

    Li et al. 2016, https://arxiv.org/abs/1510.03055 (distinct-1 and distinct-2). 1 where there is none.
    """
    num_all, distinct = 0, set()
    for text in texts:
        words = split_words(text)
        grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
        num_all += len(grams)
        distinct.update(grams)
    return len(distinct) / num_all if num_all else 1.0


def is_loop(text: str) -> bool:
    """Return whether a text is caught in a loop: one phrase follows upon itself, at least four times.

    It does so up to the text's end, or through much of it. Items of a list may differ by their numbers.
    """
    # Lines' ends are words: they tell the rows of a drawing or of a matrix from a run of the same sign.
    lines = _LINE_ENDS.sub("\n", _BLANKS.sub(" ", "\n" + text.strip()))
    words = split_words(lines.replace("\n", " ¶ "))
    return _has_loop(words, _LEAST_WORDS) or _has_loop(lines, _LEAST_CHARACTERS)


def _has_loop(words: Sequence[str], least: int) -> bool:
    """Return whether there is a loop of at least so many words. Axis: N, words."""
    numbers: dict[str, int] = {}
    words_N = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int32)
    longest = min(_LONGEST_PHRASE, len(words) // _LEAST_TURNS) if len(words) >= least else 0
    return any(_repeats(words, words_N, period, least) for period in range(1, longest + 1))


def _repeats(words: Sequence[str], words_N: NDArray[np.int32], period: int, least: int) -> bool:
    """Return whether in a stretch that makes a loop every word is that of `period` places before."""
    others = np.flatnonzero(words_N[period:] != words_N[:-period])
    ends = np.append(others, len(words_N) - period) + period
    lengths = np.diff(ends, prepend=period - 1) - 1 + period
    # The last turn lacks its line's end.
    for place in np.flatnonzero(lengths >= max(_LEAST_TURNS * period - 1, least)):
        end, share = int(ends[place]), lengths[place] / len(words)
        if not any(one.isalnum() for one in "".join(words[end - period : end])):
            is_enough = share >= _LEAST_SHARE_OF_SIGNS
        else:  # the last word may be cut
            is_enough = share >= _LEAST_SHARE or end >= len(words) - 1
        if is_enough:
            return True
    return False
